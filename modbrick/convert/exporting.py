"""Export: a checkpoint of this library becomes one that another library loads, slice by slice."""

from __future__ import annotations

import collections
import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from etils import epath

from modbrick.checkpoints import Description, describe, locate
from modbrick.checkpoints.metadata import DamagedError
from modbrick.checkpoints.slices import SLICE, SliceReader
from modbrick.checkpoints.workdir.directory import is_local
from modbrick.convert.correspondence import Correspondence, Place, correspondence
from modbrick.convert.format import Format
from modbrick.convert.huggingface.exported_config import foreign_config
from modbrick.convert.huggingface.shards import INDEX, METADATA, divide, index_text
from modbrick.convert.tokenizer import copy_tokenizer
from modbrick.errors import InputError, listed
from modbrick.formats.safetensors import DTYPES, SafetensorsWriter, TensorSpec
from modbrick.staging import require_new, staging

SHARD = 5_000_000_000
"""Bytes of values in a file, as the Hugging Face libraries have it."""

_IN_FLIGHT = 128 << 20
"""Bytes that are read ahead."""


@dataclasses.dataclass(frozen=True)
class Export:
    """A checkpoint that fits a format; none of its values is read yet.

    Attributes:
      path: of the checkpoint.
      description: its own.
      form: the format.
      correspondence: which tensor holds what.
      config: the `config.json` to write.
      tensors: to write, by name, in order.
    """

    path: epath.Path
    description: Description
    form: Format
    correspondence: Correspondence
    config: dict[str, Any]
    tensors: dict[str, TensorSpec]

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors."""
        return sum(spec.nbytes for spec in self.tensors.values())

    def to_mapping(self) -> dict[str, Any]:
        """Returns JSON-able data: the format's name, how many tensors, and their bytes."""
        return {"format": self.form.name, "tensors": len(self.tensors), "bytes": self.nbytes}


def prepare_export(
    directory: epath.PathLike, form: Format, *, step: int | None = None, dtype: str | None = None
) -> Export:
    """Compares a checkpoint with what a format can express.

    Args:
      directory: a run's or model's directory, or a single checkpoint, on a local disk.
      form: the format.
      step: which checkpoint; None: the newest complete one.
      dtype: of all tensors; None: as stored, and as imported where it was imported.

    Raises:
      InputError: there is no such checkpoint, it is damaged, or has something for which the format
        has no words or no place, each of them by name.

    Examples:
        >>> import modbrick
        >>> from modbrick.convert import format_named
        >>> export = modbrick.prepare_export("run", format_named("moduleformer"))
        >>> export.tensors["transformer.wte.weight"].shape
        (256, 16)
    """
    path = locate(directory, step)
    if not is_local(path):
        raise InputError(f"{path}: conversion reads from local disks; copy the checkpoint first")
    description = describe(path)
    if description.bricks.get("attached"):
        raise InputError(
            f"{path}: customized bricks are attached ({', '.join(description.bricks['attached'])}),"
            f" for which the format {form.name} has no place: merge or detach them first"
        )
    extra = description.metadata.extra
    places = correspondence_for_export(form, description)
    kept = extra.get("dtypes", {}) if extra.get("imported") == form.name else {}
    tensors = {}
    for name, place in places.places.items():
        stored = {jnp.dtype(description.parameters[part.path].dtype) for part in place.parts}
        common = stored.pop() if len(stored) == 1 else np.dtype(np.float32)
        tensors[name] = TensorSpec(place.shape, jnp.dtype(dtype or kept.get(name, common)))
    sizes: dict[np.dtype, int] = {}
    for name, spec in tensors.items():
        if spec.dtype not in DTYPES.values():
            raise InputError(f"{path}: {name} is {spec.dtype}, which safetensors cannot hold")
        sizes[spec.dtype] = sizes.get(spec.dtype, 0) + spec.nbytes
    main = max(sizes, key=lambda dtype: sizes[dtype])
    config = foreign_config(form, description.metadata, str(main), str(path), cast=bool(dtype))
    return Export(path, description, form, places, config, tensors)


def correspondence_for_export(form: Format, description: Description) -> Correspondence:
    """Spells out a format's rows for a checkpoint, after comparing it with its own model.

    Raises:
      InputError: the format has no place for something, or the checkpoint is not what its config
        says.
    """
    # The config first: what it cannot express says more than the parameters that follow from it.
    foreign_config(form, description.metadata, "float32", "the checkpoint")
    places = correspondence(form, description.metadata.model)
    expected = {info.path: info.shape for info in places.parameters}
    stored = {path: leaf.shape for path, leaf in description.parameters.items()}
    if expected != stored:
        wrong = sorted(set(expected.items()) ^ set(stored.items()))
        names = listed(dict.fromkeys(path for path, _ in wrong))
        raise InputError(f"the checkpoint does not fit its own model: {names}")
    return places


def export_checkpoint(
    export: Export,
    target: str | Path,
    *,
    max_shard_size: int = SHARD,
    allow_not_finite: bool = False,
    progress: Callable[[int], None] = lambda done: None,
) -> dict[str, list[str]]:
    """Writes `config.json`, safetensors with an index, and the tokenizer's files.

    Memory is bounded by a few slices, whatever the model's size. Interrupted or failed, the target
    is left as it was.

    Args:
      export: a prepared export.
      target: new or empty, on a local disk.
      max_shard_size: bytes of values in one file, at least 1.
      allow_not_finite: infinities and values that are no number are written too, as they always are
        where the import took them along.
      progress: called with how many bytes of tensors were written since the last time.

    Returns:
      The names of the tensors in each file.

    Raises:
      InputError: the target holds something, the checkpoint is damaged or has values that are not
        finite (names the tensors), or writing fails.

    Examples:
        >>> import modbrick
        >>> from modbrick.convert import format_named
        >>> export = modbrick.prepare_export("run", format_named("moduleformer"))
        >>> sorted(modbrick.export_checkpoint(export, "for_others"))
        ['model.safetensors']
    """
    if max_shard_size < 1:
        raise InputError(f"max_shard_size must be at least 1 byte, got {max_shard_size}")
    files = divide(export.tensors, max_shard_size)
    target = Path(target)
    require_new(target)
    try:
        reader = SliceReader(export.path, export.description)
        with staging(target) as directory:
            text = json.dumps(export.config, indent=2) + "\n"
            (directory / "config.json").write_text(text, encoding="utf-8")
            if len(files) > 1:
                (directory / INDEX).write_text(index_text(export.tensors, files), encoding="utf-8")
            copy_tokenizer(export.path, export.description.metadata, directory)
            pieces = _pieces(reader, export)
            for file, names in files.items():
                specs = {name: export.tensors[name] for name in names}
                with SafetensorsWriter(directory / file, specs, METADATA) as writer:
                    left = sum(spec.nbytes for spec in specs.values())
                    while left:
                        values = next(pieces)
                        writer.write(values)
                        left -= values.nbytes
                        progress(values.nbytes)
            reader.verify()
            _require_finite(reader, export, allowed=allow_not_finite)
    except DamagedError as error:
        raise InputError(f"{export.path} is damaged ({error}): use another step") from error
    return files


def _require_finite(reader: SliceReader, export: Export, *, allowed: bool) -> None:
    counts = [f"{count} in {path}" for path, count in (+reader.not_finite).items()]
    if counts and not allowed and "not_finite" not in export.description.metadata.extra:
        raise InputError(
            f"{export.path}: weights are not finite: {listed(counts, '; ')} (export "
            "--allow_not_finite writes them all the same)"
        )


@dataclasses.dataclass(frozen=True)
class _Piece:
    """Some rows of a tensor, and the slices of parameters that they are made of."""

    place: Place
    slices: tuple[tuple[str, tuple[slice, ...]], ...]
    dtype: np.dtype


def _pieces(reader: SliceReader, export: Export) -> Iterator[np.ndarray]:
    """Yields the values of all tensors in order, reading ahead."""
    ahead: collections.deque[tuple[_Piece, list[Any], int]] = collections.deque()
    waiting = 0

    def finish() -> np.ndarray:
        piece, pending, _ = ahead.popleft()
        parts = [
            reader.finish(path, index, future)
            for (path, index), future in zip(piece.slices, pending, strict=True)
        ]
        shares = [
            values[(0,) * len(part.index)]
            for values, part in zip(parts, _parts(piece), strict=True)
        ]
        return _cast(piece.place.theirs(shares), piece.dtype, piece.place.name)

    for name, place in export.correspondence.places.items():
        for piece in _divide(place, export.tensors[name].dtype):
            size = sum(_size(index) for _, index in piece.slices) * 4
            while ahead and waiting + size > _IN_FLIGHT:
                waiting -= ahead[0][2]
                yield finish()
            ahead.append((piece, [reader.start(*one) for one in piece.slices], size))
            waiting += size
    while ahead:
        yield finish()


def _cast(values: np.ndarray, dtype: np.dtype, name: str) -> np.ndarray:
    if values.dtype == dtype:
        return values
    with np.errstate(over="ignore"):  # reported by name below
        cast = values.astype(dtype)
    if np.isfinite(values.astype(np.float32)).sum() != np.isfinite(cast.astype(np.float32)).sum():
        raise InputError(f"{name} has values beyond the range of {dtype}: choose another --dtype")
    return cast


def _divide(place: Place, dtype: np.dtype) -> Iterator[_Piece]:
    """Divides a tensor into pieces of some `SLICE` bytes, where its transform keeps rows."""
    leading = place.transform.leading_axis(len(place.parts[0].shape))
    size = int(np.prod(place.shape, dtype=np.int64)) * dtype.itemsize
    if leading is None or size <= SLICE:
        yield _Piece(place, tuple(_slice(place, n) for n in range(len(place.parts))), dtype)
        return
    together = place.axis > 0 or len(place.parts) == 1
    groups = [range(len(place.parts))] if together else [[n] for n in range(len(place.parts))]
    step = max(1, place.shape[0] * SLICE // size)
    for group in groups:
        rows = place.parts[group[0]].shape[leading]
        for start in range(0, rows, step):
            span = slice(start, min(start + step, rows))
            slices = tuple(_slice(place, number, leading, span) for number in group)
            yield _Piece(place, slices, dtype)


def _slice(
    place: Place, number: int, axis: int | None = None, span: slice = slice(None)
) -> tuple[str, tuple[slice, ...]]:
    part = place.parts[number]
    spans = [slice(0, size) for size in part.shape]
    if axis is not None:
        spans[axis] = span
    return part.path, (*(slice(i, i + 1) for i in part.index), *spans)


def _parts(piece: _Piece) -> list[Any]:
    by_path = {part.path: part for part in piece.place.parts}
    return [by_path[path] for path, _ in piece.slices]


def _size(index: tuple[slice, ...]) -> int:
    return int(np.prod([span.stop - span.start for span in index], dtype=np.int64))
