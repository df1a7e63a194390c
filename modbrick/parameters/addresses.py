"""Brick addresses: absolute, stable names of parts of a model, and where each lies.

Parameters are stored by *path*, stacked over the layers of a segment and, in banks, over experts:
`segments.0.feed_forward.up.weight` with axes (layer, expert, width, hidden). Addresses name single
bricks whatever the stacking: `layer.17.feed_forward.expert.5.up.weight`,
`layer.3.attention.router`, `embedding`. A pattern is an address, or the front of one; in it, `*`,
`?` and `[abc]` match within a component, and `4-7` matches the numbers 4 to 7.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from modbrick.errors import InputError
from modbrick.schema import nearest


@dataclasses.dataclass(frozen=True)
class ParameterInfo:
    """Shape and logical axes of one stored parameter.

    `first_layer` is the absolute index of its first layer.
    """

    path: str
    shape: tuple[int, ...]
    axes: tuple[str, ...]
    first_layer: int = 0

    @property
    def bank_shape(self) -> tuple[int, ...]:
        """Sizes of the leading axes that enumerate bricks: layers, then experts."""
        return tuple(
            size
            for size, axis in zip(self.shape, self.axes, strict=True)
            if axis in ("layer", "expert")
        )

    @property
    def size(self) -> int:
        """Number of values."""
        return math.prod(self.shape)

    def address(self, *, layer: int | None = None, expert: int | None = None) -> str:
        """Returns the address of one member of the bank; None stands as `*`.

        Args:
          layer: index in the stack (not absolute).
          expert: index in the bank.
        """
        if "layer" not in self.axes:
            return self.path
        _, _, sublayer, *rest = self.path.split(".")
        absolute = "*" if layer is None else str(self.first_layer + layer)
        bank = ["expert", "*" if expert is None else str(expert)] if "expert" in self.axes else []
        return ".".join(["layer", absolute, sublayer, *bank, *rest])


class AddressTable:
    """Maps addresses and patterns to slices of a model's stored parameters."""

    def __init__(self, parameters: Iterable[ParameterInfo]):
        self._parameters = {info.path: info for info in parameters}

    def __iter__(self) -> Iterator[ParameterInfo]:
        return iter(self._parameters.values())

    def __getitem__(self, path: str) -> ParameterInfo:
        return self._parameters[path]

    def __contains__(self, path: str) -> bool:
        return path in self._parameters

    def select(self, patterns: Iterable[str]) -> dict[str, np.ndarray]:
        """Returns what the patterns cover: for each stored path, a mask over layers and experts.

        Paths that nothing covers are left out; a parameter without such axes has a mask of shape
        `()`.

        Raises:
          InputError: a pattern that covers nothing.
        """
        selected: dict[str, np.ndarray] = {}
        for pattern in patterns:
            covered = False
            for info in self:
                mask = _covers(pattern.split("."), info)
                if mask.any():
                    covered = True
                    selected[info.path] = selected.get(info.path, np.zeros_like(mask)) | mask
            if not covered:
                remark = nearest(pattern, self.bricks())
                raise InputError(f"the address pattern {pattern!r} covers no parameter; {remark}")
        return selected

    def bricks(self) -> list[str]:
        """Lists the addresses of bricks: experts, routers, projections, norms, embedding, head."""
        found: dict[str, None] = {}
        for info in self:
            for index in np.ndindex(*info.bank_shape):
                layer = index[0] if index else None
                expert = index[1] if len(index) > 1 else None
                parts = info.address(layer=layer, expert=expert).split(".")
                keep = 5 if expert is not None else 4
                found[".".join(parts[:keep] if parts[0] == "layer" else parts[:1])] = None
        return list(found)


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns nested parameters as one mapping from dotted path to leaf."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        path = f"{prefix}.{key}" if prefix else str(key)
        flat |= flatten(value, path) if isinstance(value, Mapping) else {path: value}
    return flat


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the nested parameters of a mapping from dotted path to leaf."""
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        *parents, name = path.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = value
    return tree


def _covers(pattern: list[str], info: ParameterInfo) -> np.ndarray:
    """Returns the mask over the parameter's layers and experts that the pattern covers."""
    template = info.address().split(".")
    mask = np.zeros(info.bank_shape, bool)
    if len(pattern) > len(template):
        return mask
    chosen = [np.ones(size, bool) for size in info.bank_shape]
    for position, (want, have) in enumerate(zip(pattern, template, strict=False)):
        if have == "*":
            axis = 0 if position == 1 else 1
            start = info.first_layer if axis == 0 else 0
            size = info.bank_shape[axis]
            chosen[axis] = np.array([_matches(want, str(start + i)) for i in range(size)])
        elif not _matches(want, have):
            return mask
    mask[np.ix_(*chosen)] = True
    return mask


def _matches(want: str, have: str) -> bool:
    span = re.fullmatch(r"(\d+)-(\d+)", want)
    if span and have.isdigit():
        return int(span[1]) <= int(have) <= int(span[2])
    return fnmatch.fnmatchcase(have, want)
