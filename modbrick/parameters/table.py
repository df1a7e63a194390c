"""The table of a model's parameters: what is stored under which path, and which bricks it holds.

A parameter is stored by *path*, stacked over the layers of a segment and, in banks, over experts:
`segments.0.feed_forward.up.weight` with axes (layer, expert, width, hidden). Its *address* names
one brick whatever the stacking: `layer.17.feed_forward.expert.5.up.weight`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import jax
import numpy as np

from modbrick.errors import InputError
from modbrick.parameters.addresses import EXPERT, LAYER, covered, fill, segment_template
from modbrick.schema import nearest

Role = Literal["embedding", "head", "router"]
"""Role of a parameter that optimizers and regularisers treat unlike a layer's weights."""

BANK_AXES = ("layer", "expert")
"""Leading axes that enumerate bricks, in their order."""


@dataclasses.dataclass(frozen=True)
class ParameterInfo:
    """Shape, axes and addresses of one stored parameter.

    Attributes:
      path: under which it is stored.
      shape: of the stored array.
      axes: a logical name for each axis; those of `BANK_AXES` come first.
      template: its address, with `{layer}` and `{expert}` where it has these axes; "": the path.
      first_layer: absolute index of the first of its layers.
      layers: absolute indices of its layers, where they do not follow one another; else empty.
      dtype: of its values.
      trained: whether it may be trained; what may not is always frozen.
      role: what it serves; None: a weight of a layer.
    """

    path: str
    shape: tuple[int, ...]
    axes: tuple[str, ...]
    template: str = ""
    first_layer: int = 0
    role: Role | None = None
    layers: tuple[int, ...] = ()
    dtype: str = "float32"
    trained: bool = True

    @classmethod
    def of_segment(
        cls,
        path: str,
        shape: tuple[int, ...],
        axes: tuple[str, ...],
        first_layer: int = 0,
        role: Role | None = None,
    ) -> ParameterInfo:
        """Returns the record of a parameter of a segment's layers, `segments.N.SUBLAYER.REST`."""
        return cls(path, shape, axes, segment_template(path, axes), first_layer, role)

    @property
    def bank_shape(self) -> tuple[int, ...]:
        """Sizes of the leading axes that enumerate bricks: layers, then experts."""
        return tuple(
            size for size, axis in zip(self.shape, self.axes, strict=True) if axis in BANK_AXES
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
        absolute = None if layer is None else self._numbers("layer", layer + 1)[layer]
        return fill(self.template or self.path, layer=absolute, expert=expert)

    def covered_by(self, pattern: str) -> np.ndarray:
        """Returns which members a pattern covers: bool, over the layers and experts."""
        numbers = {
            axis: self._numbers(axis, size)
            for axis, size in zip(self.axes, self.bank_shape, strict=False)
        }
        return covered(pattern, self.template or self.path, numbers)

    def _numbers(self, axis: str, size: int) -> Sequence[int]:
        """Returns by which numbers addresses name the members along an axis."""
        if axis == "expert":
            return range(size)
        return self.layers or range(self.first_layer, self.first_layer + size)


class ParameterTable:
    """Maps addresses and patterns to slices of stored parameters."""

    def __init__(self, parameters: Iterable[ParameterInfo]):
        self._parameters = {info.path: info for info in parameters}

    def __iter__(self) -> Iterator[ParameterInfo]:
        return iter(self._parameters.values())

    def __len__(self) -> int:
        return len(self._parameters)

    def __getitem__(self, path: str) -> ParameterInfo:
        return self._parameters[path]

    def __contains__(self, path: str) -> bool:
        return path in self._parameters

    def abstract(self, dtypes: Mapping[str, Any] | None = None) -> dict[str, jax.ShapeDtypeStruct]:
        """Returns shapes and dtypes of the parameters, by path.

        Args:
          dtypes: of some of them, by path; the others are in their own.
        """
        others = dtypes or {}
        return {
            info.path: jax.ShapeDtypeStruct(info.shape, others.get(info.path, info.dtype))
            for info in self
        }

    def select(self, patterns: Iterable[str]) -> dict[str, np.ndarray]:
        """Returns what the patterns cover: for each stored path, a mask over layers and experts.

        Paths that nothing covers are left out; a parameter without such axes has a mask of shape
        `()`.

        Raises:
          InputError: a pattern that covers nothing.
        """
        selected: dict[str, np.ndarray] = {}
        for pattern in patterns:
            masks = {info.path: info.covered_by(pattern) for info in self}
            found = {path: mask for path, mask in masks.items() if mask.any()}
            if not found:
                remark = nearest(pattern, self.bricks())
                raise InputError(f"the address pattern {pattern!r} covers no parameter; {remark}")
            for path, mask in found.items():
                selected[path] = selected.get(path, np.zeros_like(mask)) | mask
        return selected

    def bricks(self) -> list[str]:
        """Lists the addresses of bricks: experts, routers, projections, norms, embedding, head."""
        found: dict[str, None] = {}
        for info in self:
            for index in np.ndindex(*info.bank_shape):
                names = dict(zip(BANK_AXES, index, strict=False))
                parts = info.address(**names).split(".")
                found[".".join(parts[: _brick_length(info.template.split("."))])] = None
        return list(found)


def _brick_length(template: list[str]) -> int:
    """Returns how many components of an address name the brick, without the leaf in it."""
    if EXPERT in template:
        return template.index(EXPERT) + 1
    if LAYER in template:
        return template.index(LAYER) + 3
    return 1
