"""Pieces of bricks: what a brick has at one site of one layer."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from modbrick.bricks.attachment import attachments
from modbrick.bricks.brick import Brick
from modbrick.bricks.config import BrickConfig, Settings
from modbrick.config import ModelConfig
from modbrick.convert.peft.module import site_addresses
from modbrick.errors import InputError, listed
from modbrick.parameters.addresses import LAYER


@dataclasses.dataclass(frozen=True)
class Piece:
    """What a brick has at one site.

    Attributes:
      address: of the site.
      settings: of the brick.
      leaves: its arrays there, by name.
      brick: name of the brick.
    """

    address: str
    settings: Settings
    leaves: Mapping[str, np.ndarray]
    brick: str


def bricks_of(pieces: Iterable[Piece], model: ModelConfig) -> dict[str, Brick]:
    """Puts pieces together, by the names of their bricks."""
    groups: dict[str, list[Piece]] = {}
    for piece in pieces:
        groups.setdefault(piece.brick, []).append(piece)
    bricks = {}
    for name, group in groups.items():
        patterns = site_patterns([piece.address for piece in group], model)
        values = {
            f"{piece.address}.{leaf}": np.ascontiguousarray(value)
            for piece in group
            for leaf, value in piece.leaves.items()
        }
        bricks[name] = Brick(BrickConfig(patterns, group[0].settings), values)
    return bricks


def pieces_of(name: str, brick: Brick, model: ModelConfig) -> Iterator[Piece]:
    """Takes a brick apart, site by site.

    Raises:
      InputError: it does not fit the model; lists every mismatch.
    """
    if remarks := brick.mismatches(model):
        raise InputError(f"brick {name} does not fit the model: {listed(remarks, '; ')}")
    settings = brick.config.settings
    for place in attachments(model, brick.config):
        names = settings.leaves(place.site)
        for address in place.addresses:
            leaves = {leaf: brick.values[f"{address}.{leaf}"] for leaf in names}
            yield Piece(address, settings, leaves, name)


def site_patterns(addresses: list[str], model: ModelConfig) -> tuple[str, ...]:
    """Returns patterns that cover exactly these sites, sorted: one a site and run of layers."""
    chosen, known = _layers(addresses), _layers(site_addresses(model))
    patterns = []
    for template, layers in sorted(chosen.items()):
        if layers == known[template]:
            patterns.append(template.replace(LAYER, "*"))
            continue
        for first, last in _runs(layers):
            span = str(first) if first == last else f"{first}-{last}"
            patterns.append(template.replace(LAYER, span))
    return tuple(patterns)


def _layers(addresses: list[str]) -> dict[str, list[int]]:
    """Returns the layers of each site, ascending, by template."""
    found: dict[str, list[int]] = {}
    for address in addresses:
        parts = address.split(".")
        layers = [int(parts[1])] if parts[0] == "layer" else []
        template = ".".join(["layer", LAYER, *parts[2:]]) if layers else address
        found.setdefault(template, []).extend(layers)
    return {template: sorted(layers) for template, layers in found.items()}


def _runs(layers: list[int]) -> Iterator[tuple[int, int]]:
    """Yields the first and last of each run of ascending numbers."""
    start = 0
    for index, layer in enumerate(layers):
        if index + 1 == len(layers) or layers[index + 1] != layer + 1:
            yield layers[start], layer
            start = index + 1
