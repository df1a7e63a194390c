"""What a checkpoint says about itself: plain data beside the arrays, readable without them."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
from collections.abc import Mapping
from typing import Any

import modbrick
from modbrick.checkpoints.leaves import Leaf
from modbrick.config import ModelConfig
from modbrick.errors import InputError
from modbrick.schema import from_mapping, to_mapping

FORMAT = 1


class DamagedError(Exception):
    """A checkpoint whose files are not what was written; the message says what is wrong."""


@dataclasses.dataclass(frozen=True)
class Metadata:
    """What whoever saves a checkpoint says about it.

    Attributes:
      model: the model's config.
      run: identity of the run, nested JSON-able data; empty for imported models.
      tokenizer: identity of the tokenizer.
      data: state of the data, such as the number of rows consumed.
      extra: anything else that is JSON-able.
    """

    model: ModelConfig
    run: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    tokenizer: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    data: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Description:
    """Everything a checkpoint says about itself.

    Attributes:
      format: version of this layout.
      step: optimizer steps done.
      metadata: of whoever saved it.
      metrics: measured at this step.
      bricks: how many bricks of each kind, and which customized ones are attached.
      versions: of modbrick, jax, flax and orbax-checkpoint that wrote it.
      parameters: every stored parameter by path.
      optimizer: every leaf of the optimizer's state by path; None: saved without.
    """

    format: int
    step: int
    metadata: Metadata
    metrics: Mapping[str, float]
    bricks: Mapping[str, Any]
    versions: Mapping[str, str]
    parameters: Mapping[str, Leaf]
    optimizer: Mapping[str, Leaf] | None = None

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
    return Description(
        FORMAT,
        step,
        metadata,
        {name: float(value) for name, value in metrics.items()},
        {"emergent": bricks, "attached": []},
        {"modbrick": modbrick.__version__, **versions},
        parameters,
        optimizer,
    )


def seal(description: Description) -> dict[str, Any]:
    """Returns a description as JSON-able data under a checksum of its own."""
    record = to_mapping(description)
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
    if record["format"] != FORMAT:
        written = record.get("versions", {}).get("modbrick", "?")
        raise InputError(
            f"{where}: checkpoint format {record['format']}, written by modbrick {written}; "
            f"modbrick {modbrick.__version__} reads format {FORMAT}: use the version that wrote it"
        )
    return from_mapping(Description, record, where)


def _digest(record: Any) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _experts(sublayer: Any) -> int:
    return 0 if sublayer.experts is None else sublayer.experts.count
