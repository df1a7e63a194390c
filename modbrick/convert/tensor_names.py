"""Names of tensors in files, which are not always those of a format's table."""

from __future__ import annotations

from modbrick.convert.correspondence import Correspondence
from modbrick.convert.source import Source
from modbrick.errors import InputError
from modbrick.formats.stored_tensor import StoredTensor


def tensors_by_name(places: Correspondence, base: str, source: Source) -> dict[str, StoredTensor]:
    """Returns the tensors of a source under the names of a table, as far as it knows them.

    Files of a model without its head leave the beginning `base` out of all names. A row knows other
    names of its tensor. Where the head is tied, writers keep its tensor, the embedding's, or both.

    Args:
      places: the table, spelled out.
      base: what the table's names begin with.
      source: with its tensors.

    Raises:
      InputError: one tensor stands there under two names, and differs.
    """
    tensors = dict(source.tensors)
    if base and not any(name.startswith(base) for name in tensors):
        tensors = {
            name if name in places.places or name in places.aliases else base + name: tensor
            for name, tensor in tensors.items()
        }
    others = {other: name for name, place in places.places.items() for other in place.also}
    for other in [name for name in tensors if name in others]:
        problem = f"{others[other]} and {other} are one tensor, and differ"
        _rename(tensors, other, others[other], source, problem)
    for alias, name in places.aliases.items():
        problem = f"the head is tied, but {alias} and {name} differ"
        _rename(tensors, alias, name, source, problem)
    return tensors


def _rename(
    tensors: dict[str, StoredTensor], name: str, to: str, source: Source, problem: str
) -> None:
    """Gives a tensor another name, if it is there."""
    stored = tensors.pop(name, None)
    if stored is None:
        return
    if to not in tensors:
        tensors[to] = stored
    elif not _equal(tensors[to], stored):
        raise InputError(f"{source.path}: {problem}")


def _equal(one: StoredTensor, other: StoredTensor) -> bool:
    """Compares two tensors bit for bit, a few rows at a time."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    rows = one.shape[0] if one.shape else 1
    step = max(1, (16 << 20) * rows // max(1, one.nbytes))
    return all(
        one.read(start, min(start + step, rows)).tobytes()
        == other.read(start, min(start + step, rows)).tobytes()
        for start in range(0, rows, step)
    )
