"""Files of bricks from adapters of PEFT, and adapters from files of bricks."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from etils import epath
from jaxtyping import Array

from modbrick.convert.peft import read_adapter, write_adapter
from modbrick.convert.peft.base import Weights
from modbrick.errors import InputError
from modbrick.library.check import Model
from modbrick.library.file import StoredBrick, open_brick, write_brick
from modbrick.library.manifest import Base, Manifest
from modbrick.paths import as_path, expanded


class ReadableModel(Model, Protocol):
    """Interface of a model on disk whose parameters can be read."""

    def read(self, *, paths: Collection[str]) -> Mapping[str, Array]:
        """Returns parameters by path."""
        ...


def import_adapter(
    directory: epath.PathLike,
    file: epath.PathLike,
    model: ReadableModel,
    *,
    family: str | None = None,
    licence: str = "",
    tags: Sequence[str] = (),
    notes: str = "",
) -> list[StoredBrick]:
    """Writes an adapter of PEFT as files of bricks.

    An adapter whose modules differ in rank or scale becomes several bricks, see
    `modbrick.convert.peft.read_adapter`; those beside the first lie beside its file, under names of
    their own.

    Args:
      directory: of the adapter, on a local disk.
      file: of the first brick, new; the stem of its name is the brick's.
      model: that the adapter is for.
      family: of the names of modules, such as `llama`; None: what the model and the names say.
      licence: under which it may be used.
      tags: words to find it by.
      notes: free text.

    Raises:
      InputError: as `read_adapter`; or a file is there already: nothing is written.
    """
    first = as_path(file)
    found = read_adapter(
        Path(expanded(directory)),
        model.config,
        family=family,
        name=first.stem,
        weights=_weights(model),
    )
    files = {name: first.with_name(f"{name}{first.suffix}") for name in found}
    if taken := [path for path in files.values() if path.exists()]:
        raise InputError(f"{taken[0]} is there already: name a new file")
    base = Base(model.config, model.fingerprint())
    tokenizer = model.tokenizer_identity()
    for name, brick in found.items():
        manifest = Manifest.of(
            name,
            brick.config,
            model.config,
            base=base,
            tokenizer=tokenizer,
            licence=licence,
            tags=tuple(tags),
            notes=notes,
        )
        write_brick(files[name], brick, manifest)
    return [open_brick(path) for path in files.values()]


def export_adapter(
    files: Sequence[epath.PathLike],
    directory: epath.PathLike,
    family: str,
    *,
    model: ReadableModel | None = None,
) -> None:
    """Writes files of bricks for one model as one adapter of PEFT.

    Args:
      files: of the bricks.
      directory: new or empty, on a local disk.
      family: of the names of modules, such as `llama`.
      model: that they are for; needed where PEFT stores weights of it, or norms of them, see
        `modbrick.convert.peft.write_adapter`.

    Raises:
      InputError: a file is not that of a brick or does not say for which model it is, they are for
        different models or for another one than `model`, two have one name, or PEFT has no adapter
        for them.
    """
    stored = [open_brick(file) for file in files]
    bases = {}
    for brick in stored:
        if brick.manifest.base is None:
            raise InputError(f"{brick.path} does not say for which model it is")
        bases[brick.manifest.base.fingerprint] = brick.manifest.base
    if len(bases) != 1:
        raise InputError(f"{', '.join(str(b.path) for b in stored)} are for different models")
    (base,) = bases.values()
    if model is not None and model.fingerprint() != base.fingerprint:
        raise InputError(f"{stored[0].path} is not for {model.origin}, but for other weights")
    bricks = {brick.manifest.name: brick.read() for brick in stored}
    if len(bricks) < len(stored):
        raise InputError("two of the bricks have one name: rename one in a library")
    weights = None if model is None else _weights(model)
    write_adapter(Path(expanded(directory)), bricks, base.model, family, weights=weights)


def _weights(model: ReadableModel) -> Weights:
    return lambda path: model.read(paths=[path])[path]
