"""Models with bricks in their weights, and back.

Next to its checkpoint a folded model keeps what was replaced: `folded/0.safetensors` holds the
tensors as they were, `folded/1.safetensors` those of a second folding, so that each can be undone
to the bit. Nothing is ever subtracted.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from etils import epath

from modbrick.bricks.brick import Brick
from modbrick.bricks.folding import folded
from modbrick.bricks.functional import is_brick
from modbrick.checkpoints import Metadata, save_model
from modbrick.errors import InputError
from modbrick.formats.safetensors import SafetensorsWriter, TensorSpec, read_with_metadata
from modbrick.models.stored import StoredModel, open_model
from modbrick.schema import from_json, to_json
from modbrick.staging import staging

FOLDED = "folded"
HEADER = "modbrick.folded"
"""Key of the record among the metadata of the header."""
FORMAT = 1


@dataclasses.dataclass(frozen=True)
class Replaced:
    """Record of one folding, in the header of the file of what it replaced.

    Attributes:
      base: fingerprint of the model before.
      bricks: names of what was folded.
      format: version of this record.
    """

    base: str
    bricks: tuple[str, ...]
    format: int = FORMAT


def fold_model(model: StoredModel, output: epath.PathLike) -> None:
    """Writes a model with its bricks folded into the weights.

    Args:
      model: with bricks, of its own or plugged in (`StoredModel.with_bricks`).
      output: directory, new or empty, on a local disk; left as it was if anything fails.

    Raises:
      InputError: it has no bricks, or some for domains; one cannot be folded, or writing fails.
    """
    if not model.bricks:
        raise InputError(f"{model.origin} has no bricks to fold: name files of bricks")
    if model.description and model.description.metadata.brick_sets:
        raise InputError(
            f"{model.origin}: its bricks are for documents of some domains, weights are for all: "
            "save the brick that is to be folded as a file"
        )
    alone, values = model.alone(), model.read_all()
    bricks = {
        name: Brick.of_parameters(name, config, model.config, values)
        for name, config in model.bricks.items()
    }
    parameters = {path: np.asarray(x) for path, x in values.items() if not is_brick(path)}
    new = folded(model.config, parameters, bricks)
    record = Replaced(alone.fingerprint(), tuple(bricks))
    replaced = {path: parameters[path] for path in new}
    with staging(Path(output)) as directory:
        _save(directory, alone, {**parameters, **new})
        earlier = _kept(alone)
        (directory / FOLDED).mkdir()
        for number, path in enumerate(earlier):
            (directory / FOLDED / f"{number}.safetensors").write_bytes(path.read_bytes())
        _write(directory / FOLDED / f"{len(earlier)}.safetensors", replaced, record)


def unfold_model(model: StoredModel, output: epath.PathLike) -> tuple[str, ...]:
    """Writes the model that a folded one was before its last folding, the same to the bit.

    Args:
      model: that `fold_model` wrote.
      output: directory, new or empty, on a local disk; left as it was if anything fails.

    Returns:
      The names of the bricks that are not in it any more.

    Raises:
      InputError: nothing was folded into it, what it was is damaged or not there, the weights have
        been changed since, or writing fails.
    """
    earlier = _kept(model)
    if not earlier:
        raise InputError(f"{model.origin}: nothing was folded into it")
    replaced, record = _read(earlier[-1])
    parameters = {path: np.asarray(x) for path, x in model.read().items()}
    for path, before in replaced.items():
        after = parameters.get(path)
        if after is None or (after.shape, after.dtype) != (before.shape, before.dtype):
            raise InputError(f"{earlier[-1]}: {path} is not one of {model.origin}")
    parameters |= replaced
    with staging(Path(output)) as directory:
        _save(directory, model, parameters)
        if open_model(directory).fingerprint() != record.base:
            raise InputError(f"{model.origin} was changed after {', '.join(record.bricks)} came in")
        if earlier[:-1]:
            (directory / FOLDED).mkdir()
        for path in earlier[:-1]:
            (directory / FOLDED / path.name).write_bytes(path.read_bytes())
    return record.bricks


def _save(directory: Path, model: StoredModel, parameters: Mapping[str, np.ndarray]) -> None:
    identity = model.tokenizer_identity()
    about = Metadata(
        model.config, tokenizer={} if identity is None else dataclasses.asdict(identity)
    )
    arrays = {path: jnp.asarray(value) for path, value in parameters.items()}
    text = None if identity is None else model.tokenizer().to_json()
    dtypes = {path: value.dtype for path, value in parameters.items()}
    save_model(directory, arrays, about, tokenizer=text, step=model.step or 0, dtypes=dtypes)


def _kept(model: StoredModel) -> list[epath.Path]:
    """Lists the files of what was replaced in a model, the earliest first."""
    if not isinstance(model.contents, epath.Path):
        return []
    directory = model.contents.parent.parent / FOLDED
    if not directory.is_dir():
        return []
    count = len(list(directory.iterdir()))
    files = [directory / f"{number}.safetensors" for number in range(count)]
    if missing := [file for file in files if not file.exists()]:
        raise InputError(f"{missing[0]} is missing")
    return files


def _write(path: Path, replaced: Mapping[str, np.ndarray], record: Replaced) -> None:
    specs = {name: TensorSpec(value.shape, value.dtype) for name, value in replaced.items()}
    with SafetensorsWriter(path, specs, {HEADER: to_json(record)}) as writer:
        for value in replaced.values():
            writer.write(value)


def _read(path: epath.Path) -> tuple[dict[str, np.ndarray], Replaced]:
    tensors, metadata = read_with_metadata(path)
    record = from_json(Replaced, metadata.get(HEADER, "{}"), f"{path}: {HEADER}")
    if record.format != FORMAT:
        raise InputError(f"{path}: of format {record.format}, not {FORMAT}: use a newer version")
    return {name: np.array(tensor.read()) for name, tensor in tensors.items()}, record
