"""Transforms between our parameters and the tensors of other formats: values move, bits stay.

`ours` is what the layers of this library use (dense weights `[in, out]`, banks `[E, in, out]`),
`theirs` what the other format stores. A transform sees one layer's share of a parameter, or one
expert's where the format keeps experts apart. Every transform is invertible.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Protocol

import numpy as np

from modbrick.config import LayerConfig

Shape = tuple[int, ...]


class Transform(Protocol):
    """A rearrangement of values, and its inverse.

    Results are views where numpy can make one: then a slice of them reads only what it covers.
    """

    def shape(self, ours: Shape) -> Shape:
        """Returns the shape there of values that have the shape `ours` here."""

    def ours(self, theirs: np.ndarray, layer: LayerConfig | None) -> np.ndarray:
        """Returns the values as they lie here.

        Args:
          theirs: as the other format stores them.
          layer: the layer that they belong to; None: to none.
        """

    def theirs(self, ours: np.ndarray, layer: LayerConfig | None) -> np.ndarray:
        """Returns the values as the other format stores them; the inverse of `ours`."""

    def leading_axis(self, axes: int) -> int | None:
        """Returns which of `axes` axes here is their first one; None: no single axis is.

        Large tensors are converted in slices along it.
        """


@dataclasses.dataclass(frozen=True)
class Same:
    """Identity: the same axes in the same order."""

    def shape(self, ours: Shape) -> Shape:
        """See `Transform`."""
        return ours

    def ours(self, theirs: np.ndarray, layer: LayerConfig | None) -> np.ndarray:
        """See `Transform`."""
        return theirs

    def theirs(self, ours: np.ndarray, layer: LayerConfig | None) -> np.ndarray:
        """See `Transform`."""
        return ours

    def leading_axis(self, axes: int) -> int | None:
        """See `Transform`."""
        return 0 if axes else None


@dataclasses.dataclass(frozen=True)
class Transposed:
    """Swap of the last two axes: `[..., out, in]` there, `[..., in, out]` here."""

    def shape(self, ours: Shape) -> Shape:
        """See `Transform`."""
        return (*ours[:-2], ours[-1], ours[-2])

    def ours(self, theirs: np.ndarray, layer: LayerConfig | None) -> np.ndarray:
        """See `Transform`."""
        return np.swapaxes(theirs, -1, -2)

    def theirs(self, ours: np.ndarray, layer: LayerConfig | None) -> np.ndarray:
        """See `Transform`."""
        return np.swapaxes(ours, -1, -2)

    def leading_axis(self, axes: int) -> int | None:
        """See `Transform`."""
        return 1 if axes == 2 else 0


@dataclasses.dataclass(frozen=True)
class Reshaped:
    """Change of shape alone: axes are split, joined, or added with size 1.

    Attributes:
      to: maps our shape to theirs, of the same number of values.
      back: the inverse of `to`.
    """

    to: Callable[[Shape], Shape]
    back: Callable[[Shape], Shape]

    def shape(self, ours: Shape) -> Shape:
        """See `Transform`."""
        return self.to(ours)

    def ours(self, theirs: np.ndarray, layer: LayerConfig | None) -> np.ndarray:
        """See `Transform`."""
        return theirs.reshape(self.back(theirs.shape))

    def theirs(self, ours: np.ndarray, layer: LayerConfig | None) -> np.ndarray:
        """See `Transform`."""
        return ours.reshape(self.to(ours.shape))

    def leading_axis(self, axes: int) -> int | None:
        """See `Transform`."""
        return None


@dataclasses.dataclass(frozen=True)
class InterleavedRotary:
    """Permutation of the rows of a query or key projection, from interleaved to split rotary pairs.

    Rotary embeddings here rotate value i of a head with value i + head_width / 2; llama.cpp and the
    original Llama rotate 2i with 2i + 1, and keep the rows of the projection permuted to suit.
    Weights are `[out, in]` there and `[in, out]` here; biases are `[out]`.

    Attributes:
      heads: how many heads the projection of a layer has, such as
        `lambda layer: layer.attention.grouped_heads` for keys.
    """

    heads: Callable[[LayerConfig], int]

    def shape(self, ours: Shape) -> Shape:
        """See `Transform`."""
        return ours[::-1]

    def ours(self, theirs: np.ndarray, layer: LayerConfig | None) -> np.ndarray:
        """See `Transform`."""
        assert layer is not None, "a projection belongs to a layer"
        pairs = theirs.reshape(self.heads(layer), -1, 2, *theirs.shape[1:])
        return pairs.swapaxes(1, 2).reshape(theirs.shape).T

    def theirs(self, ours: np.ndarray, layer: LayerConfig | None) -> np.ndarray:
        """See `Transform`."""
        assert layer is not None, "a projection belongs to a layer"
        rows = ours.T
        halves = rows.reshape(self.heads(layer), 2, -1, *rows.shape[1:])
        return halves.swapaxes(1, 2).reshape(rows.shape)

    def leading_axis(self, axes: int) -> int | None:
        """See `Transform`."""
        return None


SAME = Same()
TRANSPOSED = Transposed()
