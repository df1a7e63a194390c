"""Manifest of a brick: what it is, what it fits, and where it comes from."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import modbrick
from modbrick.bricks.attachment import attachments
from modbrick.bricks.config import BrickConfig, check_name
from modbrick.bricks.kinds.kind import LeafInfo
from modbrick.config import ModelConfig
from modbrick.data import TokenizerIdentity
from modbrick.decoder.sites import Site
from modbrick.errors import InputError
from modbrick.formats.strict_json import parse_object
from modbrick.schema import from_mapping, to_mapping

FORMAT = 1
UPGRADES: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {}
"""What makes plain data of a format into those of the next, by format."""

Granularity = Literal["neuron", "neuron group", "layer", "full model"]
"""Size of a brick as a unit of a model (arXiv 2409.02877, section 2.3)."""


@dataclasses.dataclass(frozen=True)
class Base:
    """The model that a brick was trained on.

    Attributes:
      model: its config.
      fingerprint: of its weights, see `modbrick.checkpoints.metadata.model_fingerprint`.
    """

    model: ModelConfig
    fingerprint: str


@dataclasses.dataclass(frozen=True)
class Provenance:
    """Where a brick comes from.

    Attributes:
      steps: for which it was trained; None: it was not, or nobody knows.
      metrics: measured at the end, finite ones.
      data: on which it was trained; JSON-able.
      versions: of the packages that wrote it.
    """

    steps: int | None = None
    metrics: Mapping[str, float] = dataclasses.field(default_factory=dict)
    data: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    versions: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Manifest:
    """Description of a brick, written into its file.

    Attributes:
      name: under which it is plugged in.
      brick: its kind with settings, and patterns of its sites.
      sites: where it has values, by address (`layer.3.attention.query`), with the widths there:
        its interface to a model.
      granularity: as what it serves in a model; a LoRA, adapter or prefix is a neuron group.
      base: the model that it was trained on; None: it is for any model with its sites.
      tokenizer: of the text that it was trained on; None: it does not matter, or nobody knows.
      provenance: where it comes from.
      licence: under which it may be used, such as `Apache-2.0`; empty: nothing is said.
      tags: words to find it by, such as `lang:de`.
      notes: free text.
      format: version of this record.
    """

    name: str
    brick: BrickConfig
    sites: Mapping[str, Site]
    granularity: Granularity = "neuron group"
    base: Base | None = None
    tokenizer: TokenizerIdentity | None = None
    provenance: Provenance = Provenance()
    licence: str = ""
    tags: tuple[str, ...] = ()
    notes: str = ""
    format: int = FORMAT

    def __post_init__(self) -> None:
        check_name(self.name)
        for address, site in self.sites.items():
            if not re.fullmatch(rf"(layer\.[0-9]+\.)?{re.escape(site.name)}", address):
                raise InputError(f"sites.{address}: is no address of the site {site.name!r}")
            if min(site.input_width, site.output_width, site.slots) < 1:
                raise InputError(f"sites.{address}: widths must be at least 1")
        if empty := [tag for tag in self.tags if not tag.strip()]:
            raise InputError(f"tags: {empty[0]!r} is empty")
        for where, value in _numbers(to_mapping(self)):
            if not math.isfinite(value):
                raise InputError(f"{where.lstrip('.')}: must be finite, got {value}")

    @classmethod
    def of(cls, name: str, brick: BrickConfig, model: ModelConfig, **more: Any) -> Manifest:
        """Describes a brick on a model, whose sites tell where it has values.

        Args:
          name: of the brick.
          brick: its config.
          model: that it is attached to.
          more: other attributes.

        Raises:
          InputError: a pattern covers no site, or the name is none.
        """
        return cls(name, brick, attached_sites(model, brick), **more)

    @staticmethod
    def upgrade(data: dict[str, Any]) -> dict[str, Any]:
        """Returns data of an older format as those of today."""
        while data.get("format") in UPGRADES:
            data = UPGRADES[data["format"]](data)
        return data

    def leaves(self) -> dict[str, LeafInfo]:
        """Returns the arrays that the brick has, by address: `layer.3.attention.query.down`.

        Raises:
          InputError: a site that its kind does not fit.
        """
        return {
            f"{address}.{leaf}": info
            for address, site in self.sites.items()
            for leaf, info in self.brick.settings.leaves(site).items()
        }

    def to_json(self) -> str:
        """Returns the text that `read_manifest` reads back."""
        return json.dumps(to_mapping(self), allow_nan=False)


def attached_sites(model: ModelConfig, config: BrickConfig) -> dict[str, Site]:
    """Returns the sites of a model where a brick is attached, by address.

    Raises:
      InputError: a pattern that covers no site.
    """
    return {
        address: place.site for place in attachments(model, config) for address in place.addresses
    }


def read_manifest(text: str, where: str) -> Manifest:
    """Reads the text of a manifest.

    Raises:
      InputError: no manifest, one of a newer format, or one that contradicts itself; the message
        begins with `where`.
    """
    data = parse_object(text.encode(), where)
    version = data.get("format")
    if type(version) is not int or version < 1:
        raise InputError(f"{where}: format: expected a version, got {version!r}")
    if version > FORMAT:
        provenance = data.get("provenance")
        versions = provenance.get("versions") if isinstance(provenance, dict) else None
        writer = versions.get("modbrick", "?") if isinstance(versions, dict) else "?"
        raise InputError(
            f"{where}: a brick of format {version}, written by modbrick {writer}; modbrick "
            f"{modbrick.__version__} reads formats up to {FORMAT}: use a newer version"
        )
    return from_mapping(Manifest, data, where)


def _numbers(data: Any, where: str = "") -> Iterator[tuple[str, float]]:
    """Yields every float of plain data, with its place."""
    if isinstance(data, float):
        yield where, data
    elif isinstance(data, Mapping):
        for key, value in data.items():
            yield from _numbers(value, f"{where}.{key}")
    elif isinstance(data, list):
        for index, value in enumerate(data):
            yield from _numbers(value, f"{where}[{index}]")
