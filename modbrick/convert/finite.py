"""Weights that are not finite, counted by tensor as slices of parameters pass by."""

from __future__ import annotations

import numpy as np

from modbrick.convert.opening import OpenedSource
from modbrick.errors import listed


class NotFinite:
    """Counts of infinities and of values that are no number, by the name of the tensor."""

    def __init__(self, checkpoint: OpenedSource):
        self._checkpoint = checkpoint
        self._counts: dict[tuple[str, tuple[int, ...], tuple[int, ...]], tuple[str, int]] = {}

    def __len__(self) -> int:
        """Number of such values."""
        return sum(count for _, count in self._counts.values())

    def add(self, path: str, index: tuple[slice, ...], values: np.ndarray) -> None:
        """Counts those in the slice `index` of a parameter; a slice that comes again counts once.

        Args:
          path: of the parameter.
          index: a slice without step for each axis.
          values: of the slice.
        """
        parts = self._checkpoint.correspondence.parts[path]
        shape = self._checkpoint.correspondence.parameters[path].shape
        starts = tuple(span.indices(n)[0] for span, n in zip(index, shape, strict=True))
        depth = len(next(iter(parts)))
        for bank in np.ndindex(values.shape[:depth]):
            where = tuple(start + i for start, i in zip(starts, bank, strict=False))
            if count := int(np.count_nonzero(~np.isfinite(values[bank].astype(np.float32)))):
                self._counts[path, where, starts[depth:]] = parts[where][0].name, count

    def complaint(self) -> str:
        """Returns the message that names the tensors."""
        by_tensor: dict[str, int] = {}
        for name, count in self._counts.values():
            by_tensor[name] = by_tensor.get(name, 0) + count
        named = listed([f"{count} in {name}" for name, count in by_tensor.items()], "; ")
        return (
            f"{self._checkpoint.source.path}: {len(self)} weights are not finite: {named} "
            "(convert_checkpoint.py import --allow_not_finite imports them all the same)"
        )
