"""Metadata of a checkpoint: plain data beside the arrays, readable without them."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

import modbrick
from modbrick.bricks.config import BrickConfig
from modbrick.bricks.table import brick_infos
from modbrick.checkpoints.leaves import Leaf
from modbrick.checkpoints.parts import Part, others
from modbrick.config import ModelConfig
from modbrick.decoder.functional import parameter_table
from modbrick.errors import InputError
from modbrick.parameters import ParameterTable
from modbrick.schema import from_mapping, to_mapping

FORMAT = 1
SPLIT_FORMAT = 2
"""Format of checkpoints that hold only what is trained."""
BRICK_FORMAT = 3
"""Format of checkpoints that hold customized bricks and name the model that they are for."""
FORMATS = (FORMAT, SPLIT_FORMAT, BRICK_FORMAT)


class DamagedError(Exception):
    """A checkpoint whose files are not what was written; the message says what is wrong."""


@dataclasses.dataclass(frozen=True)
class BaseModel:
    """Record of a model that bricks are for.

    Attributes:
      origin: path where it was.
      fingerprint: of its parameters, see `model_fingerprint`.
    """

    origin: str
    fingerprint: str


@dataclasses.dataclass(frozen=True)
class Metadata:
    """Description of a checkpoint by whoever saves it.

    Attributes:
      model: the model's config.
      run: identity of the run, nested JSON-able data; empty for imported models.
      tokenizer: identity of the tokenizer.
      data: state of the data, such as the number of rows consumed.
      extra: anything else that is JSON-able.
      bricks: configs of customized bricks, by name, whose values are all that the checkpoint holds;
        empty: it holds the model's parameters.
      brick_sets: by domain of the data, which bricks its documents use (`de+law`); empty: all.
      base: the model that the bricks are for.
    """

    model: ModelConfig
    run: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    tokenizer: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    data: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    bricks: Mapping[str, BrickConfig] = dataclasses.field(default_factory=dict)
    brick_sets: Mapping[str, str] = dataclasses.field(default_factory=dict)
    base: BaseModel | None = None

    def table(self, model: ModelConfig | None = None) -> ParameterTable:
        """Returns the table of what the checkpoint holds, for its model or another."""
        model = model or self.model
        if self.bricks:
            return ParameterTable(brick_infos(model, self.bricks))
        return parameter_table(model)


@dataclasses.dataclass(frozen=True)
class BaseReference:
    """Record of which parameters are in the checkpoint and which in its base of frozen ones.

    Attributes:
      base: fingerprint of the frozen parameters, and the name of their directory.
      trainable: leaves in the checkpoint itself, by path.
      frozen: leaves in the base, by path.
      parts: what the trainable leaf holds of each bank that is trained in part, by path; the
        frozen leaf has all others. Checksums of both are by the places that values have in the
        whole.
    """

    base: str
    trainable: Mapping[str, Leaf]
    frozen: Mapping[str, Leaf]
    parts: Mapping[str, Part]

    @property
    def whole(self) -> dict[str, Leaf]:
        """Every parameter as it is when both are joined, by path."""
        leaves = {**self.trainable, **self.frozen}
        for path, part in self.parts.items():
            mine, held = self.trainable[path], self.frozen[path]
            dtype = jnp.promote_types(jnp.dtype(mine.dtype), jnp.dtype(held.dtype)).name
            leaves[path] = Leaf(part.shape, dtype, (mine.checksum + held.checksum) % 2**32)
        return leaves


def model_fingerprint(parameters: Mapping[str, Leaf]) -> str:
    """Returns a digest of a model's parameters: names, shapes, dtypes and every value."""
    return _digest(to_mapping(parameters))[:16]


def fingerprint(frozen: Mapping[str, Leaf], parts: Mapping[str, Part]) -> str:
    """Returns the name of a base: a digest of what it holds and of every value in it."""
    held = {path: part for path, part in others(parts).items() if path in frozen}
    return _digest(to_mapping({"frozen": frozen, "parts": held}))[:16]


@dataclasses.dataclass(frozen=True)
class Description:
    """Everything a checkpoint says about itself.

    Attributes:
      format: version of this format.
      step: optimizer steps done.
      metadata: of whoever saved it.
      metrics: measured at this step.
      bricks: how many bricks of each kind, and which customized ones are attached.
      versions: of modbrick, jax, flax and orbax-checkpoint that wrote it.
      parameters: every parameter by path, as it is when all are joined.
      optimizer: every leaf of the optimizer's state by path; None: saved without.
      split: where parameters lie that are not all in the checkpoint itself.
    """

    format: int
    step: int
    metadata: Metadata
    metrics: Mapping[str, float]
    bricks: Mapping[str, Any]
    versions: Mapping[str, str]
    parameters: Mapping[str, Leaf]
    optimizer: Mapping[str, Leaf] | None = None
    split: BaseReference | None = None

    @property
    def stored_parameters(self) -> Mapping[str, Leaf]:
        """Leaves of parameters in the checkpoint itself, by path."""
        return self.parameters if self.split is None else self.split.trainable

    @property
    def parameter_bytes(self) -> int:
        """Bytes of all parameters."""
        return sum(leaf.bytes for leaf in self.parameters.values())


def new_description(
    step: int,
    metadata: Metadata,
    metrics: Mapping[str, float],
    parameters: Mapping[str, Leaf],
    optimizer: Mapping[str, Leaf] | None,
    split: BaseReference | None = None,
) -> Description:
    """Describes a checkpoint about to be written by this code."""
    layers = metadata.model.layers
    bricks = {
        "layer": len(layers),
        "attention.expert": sum(_experts(layer.attention) for layer in layers),
        "feed_forward.expert": sum(_experts(layer.feed_forward) for layer in layers),
    }
    packages = ("jax", "flax", "orbax-checkpoint")
    versions = {name: importlib.metadata.version(name) for name in packages}
    whole = FORMAT if split is None else SPLIT_FORMAT
    return Description(
        BRICK_FORMAT if metadata.bricks else whole,
        step,
        metadata,
        {name: float(value) for name, value in metrics.items()},
        {"emergent": bricks, "attached": list(metadata.bricks)},
        {"modbrick": modbrick.__version__, **versions},
        parameters if split is None else split.whole,
        optimizer,
        split,
    )


def seal(description: Description) -> dict[str, Any]:
    """Returns a description as JSON-able data under a checksum of its own."""
    record = to_mapping(description)
    if record["split"] is None:
        del record["split"]  # nothing that versions before it would not know
    if not record["metadata"]["bricks"]:
        for name in ("bricks", "brick_sets", "base"):
            del record["metadata"][name]
    return {"sha256": _digest(record), "description": record}


def unseal(data: Any, where: str) -> Description:
    """Reads back what `seal` returned.

    Raises:
      DamagedError: not what was written.
      InputError: written in another format.
    """
    if not isinstance(data, dict) or set(data) != {"sha256", "description"}:
        raise DamagedError("its metadata are not those of a checkpoint of modbrick")
    record = data["description"]
    if _digest(record) != data["sha256"]:
        raise DamagedError("metadata/data.json does not agree with its checksum")
    if record["format"] not in FORMATS:
        written = record.get("versions", {}).get("modbrick", "?")
        raise InputError(
            f"{where}: checkpoint format {record['format']}, written by modbrick {written}; "
            f"modbrick {modbrick.__version__} reads formats up to {max(FORMATS)}: use the version "
            "that wrote it"
        )
    return from_mapping(Description, record, where)


def _digest(record: Any) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _experts(sublayer: Any) -> int:
    return 0 if sublayer.experts is None else sublayer.experts.count
