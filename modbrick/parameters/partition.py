"""Partition of the parameters, by address, into trainable and frozen ones.

The split happens before differentiation and the two parts are joined inside the loss, so what is
frozen has no gradient and no optimizer state, down to single layers and experts of a stacked bank.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool

from modbrick.errors import InputError
from modbrick.parameters.slices import ParameterSlice
from modbrick.parameters.table import ParameterTable


class Partition:
    """Splits a model's parameters into trainable and frozen ones.

    A bank that is partly trained is split along its layers if whole layers are trained, along its
    experts if the same experts are in all layers, and else brick by brick, layer by layer, along
    one axis.

    Attributes:
      table: the model's parameters.
      trainable: what each trainable leaf holds, by the parameter's path.
      frozen: the same for frozen leaves.

    Examples:
        >>> import modbrick
        >>> config = modbrick.families.dense(
        ...     vocabulary=32, width=8, layers=2, heads=2, feed_forward_width=16
        ... )
        >>> table = modbrick.parameter_table(config)
        >>> partition = modbrick.Partition(table, trainable=["layer.1.feed_forward"])
        >>> partition.trainable["segments.0.feed_forward.up.weight"].shape  # of layer 1 alone
        (1, 8, 16)
        >>> "embedding" in partition.frozen
        True
    """

    def __init__(
        self,
        table: ParameterTable,
        *,
        trainable: Iterable[str] = ("*",),
        frozen: Iterable[str] = (),
        frozen_dtype: str | None = None,
    ):
        """Decides what is trained.

        Args:
          table: the model's parameters.
          trainable: address patterns of bricks that are trained.
          frozen: address patterns of bricks that are not, even if `trainable` covers them.
          frozen_dtype: in which frozen parameters are held, but for integers; None: as they are
            given.

        Raises:
          InputError: a pattern that covers nothing, or nothing is left to train.
        """
        self.table, self.frozen_dtype = table, frozen_dtype
        self.trainable: dict[str, ParameterSlice] = {}
        self.frozen: dict[str, ParameterSlice] = {}
        trained, held = table.select(trainable), table.select(frozen)
        for info in table:
            nothing = np.zeros(info.bank_shape, bool)
            mask = trained.get(info.path, nothing) & ~held.get(info.path, nothing) & info.trained
            if mask.any():
                self.trainable[info.path] = ParameterSlice.of(info, mask)
            if not mask.all():
                self.frozen[info.path] = ParameterSlice.of(info, ~mask)
        if not self.trainable:
            raise InputError(
                "every parameter is frozen: nothing is left to train; name what to train in "
                "`trainable`, or take something out of `frozen`"
            )

    def within(self, table: ParameterTable) -> Partition:
        """Returns the same division of some of the parameters.

        Args:
          table: of these.
        """
        part = copy.copy(self)
        part.table = table
        part.trainable = {p: s for p, s in self.trainable.items() if p in table}
        part.frozen = {p: s for p, s in self.frozen.items() if p in table}
        return part

    def split(self, parameters: Mapping[str, Array]) -> tuple[dict[str, Array], dict[str, Array]]:
        """Returns the trainable and the frozen part of a model's parameters.

        Leaves that are trained or frozen as a whole are passed on, not copied; frozen ones are in
        `frozen_dtype`.

        Raises:
          ValueError: parameters that are not those of the table.
        """
        _require_paths(parameters, [info.path for info in self.table])
        return (
            {path: part.take(parameters[path]) for path, part in self.trainable.items()},
            {path: self._held(part.take(parameters[path])) for path, part in self.frozen.items()},
        )

    def join(self, trainable: Mapping[str, Array], frozen: Mapping[str, Array]) -> dict[str, Array]:
        """Returns the parameters that `split` makes these of; differentiable in both.

        Frozen leaves may be kept in another dtype than trained ones; a bank of both has that of
        the trained part.

        Raises:
          ValueError: parts that do not belong to this partition.
        """
        _require_paths(trainable, self.trainable)
        _require_paths(frozen, self.frozen)
        joined = {}
        for info in self.table:
            path = info.path
            if path in trainable and path in frozen:
                part = trainable[path]
                joined[path] = self.trainable[path].joined(
                    part, self.frozen[path], frozen[path].astype(part.dtype)
                )
            else:
                joined[path] = trainable[path] if path in trainable else frozen[path]
        return joined

    def _held(self, leaf: Array) -> Array:
        if self.frozen_dtype is None or not jnp.issubdtype(leaf.dtype, jnp.floating):
            return leaf
        return leaf.astype(self.frozen_dtype)

    def select(self, patterns: Iterable[str]) -> dict[str, Bool[np.ndarray, "..."]]:
        """Returns what the patterns cover of the trainable leaves.

        Returns:
          For each path with anything covered, a mask over the leaf's leading axes that enumerate
          bricks: (layer), (layer, expert) or (brick); shape `()` where there are none.

        Raises:
          InputError: a pattern that covers no parameter, trainable or frozen.
        """
        masks = {
            path: self.trainable[path].take_mask(mask)
            for path, mask in self.table.select(patterns).items()
            if path in self.trainable
        }
        return {path: mask for path, mask in masks.items() if mask.any()}


def _require_paths(flat: Mapping[str, Any], expected: Iterable[str]) -> None:
    known = set(expected)
    if flat.keys() != known:
        raise ValueError(
            f"parameters of another partition: missing {sorted(known - flat.keys())}, "
            f"unexpected {sorted(flat.keys() - known)}"
        )
