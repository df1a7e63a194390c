"""Which bricks are trained: parameters split by address into trainable and frozen ones.

The split happens before differentiation and the two parts are joined inside the loss, so what is
frozen has no gradient and no optimizer state, down to single layers and experts of a stacked bank.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from modbrick.errors import InputError
from modbrick.parameters.addresses import AddressTable, ParameterInfo, flatten, unflatten


@dataclasses.dataclass(frozen=True, eq=False)
class Members:
    """Part of a stored parameter, as an array of its own.

    Attributes:
      info: the whole parameter.
      axis: of the bank, along which members are taken: 0 or 1; None: the whole parameter.
      indices: of the members along that axis, ascending.
      flattened: layers and experts are one axis `member`, numbered layer by layer.
    """

    info: ParameterInfo
    axis: int | None = None
    indices: tuple[int, ...] = ()
    flattened: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the part."""
        return self._part_of(self.info.shape)

    @property
    def axes(self) -> tuple[str, ...]:
        """Logical axes of the part."""
        return ("member", *self.info.axes[2:]) if self.flattened else self.info.axes

    @property
    def brick_axes(self) -> int:
        """Number of leading axes that enumerate bricks."""
        return 1 if self.flattened else len(self.info.bank_shape)

    def take_mask(self, mask: Bool[np.ndarray, "..."]) -> Bool[np.ndarray, "..."]:
        """Returns the members' part of a mask (or of any values) over the parameter's bank."""
        bank = np.asarray(mask).reshape(self._view(mask.shape))
        return bank if self.axis is None else np.take(bank, self.indices, self.axis)

    def take(self, whole: Float[Array, "..."]) -> Float[Array, "..."]:
        """Returns the part of the whole parameter; all of it as it is."""
        if self.axis is None:
            return whole
        return whole.reshape(self._view(whole.shape))[self._index()]

    def put(self, whole: Float[Array, "..."], part: Float[Array, "..."]) -> Float[Array, "..."]:
        """Returns the parameter with the part written into it. Its gradient in `part` is `take`."""
        view = whole.reshape(self._view(whole.shape))
        view = view.at[self._index()].set(part, indices_are_sorted=True, unique_indices=True)
        return view.reshape(whole.shape)

    def _view(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape in which the bank is seen for taking members."""
        return (shape[0] * shape[1], *shape[2:]) if self.flattened else shape

    def _index(self) -> tuple[slice | np.ndarray, ...]:
        assert self.axis is not None
        return (*(slice(None) for _ in range(self.axis)), np.asarray(self.indices, np.int32))

    def _part_of(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        if self.axis is None:
            return shape
        view = self._view(shape)
        return (*view[: self.axis], len(self.indices), *view[self.axis + 1 :])


class Partition:
    """Splits a model's parameters into trainable and frozen ones.

    A bank that is partly trained is split along its layers if whole layers are trained, along its
    experts if the same experts are in all layers, and else into (layer, expert) members, one after
    another along one axis.

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
        table: AddressTable,
        *,
        trainable: Iterable[str] = ("*",),
        frozen: Iterable[str] = (),
    ):
        """Decides what is trained.

        Args:
          table: the model's parameters.
          trainable: address patterns of bricks that are trained.
          frozen: address patterns of bricks that are not, even if `trainable` covers them.

        Raises:
          InputError: a pattern that covers nothing, or nothing is left to train.
        """
        self.table = table
        self.trainable: dict[str, Members] = {}
        self.frozen: dict[str, Members] = {}
        trained, held = table.select(trainable), table.select(frozen)
        for info in table:
            nothing = np.zeros(info.bank_shape, bool)
            mask = trained.get(info.path, nothing) & ~held.get(info.path, nothing)
            if mask.any():
                self.trainable[info.path] = _members(info, mask)
            if not mask.all():
                self.frozen[info.path] = _members(info, ~mask)
        if not self.trainable:
            raise InputError(
                "every parameter is frozen: nothing is left to train; name what to train in "
                "`trainable`, or take something out of `frozen`"
            )

    def split(self, parameters: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Returns the trainable and the frozen part of nested parameters.

        Leaves that are trained or frozen as a whole are passed on, not copied.

        Raises:
          ValueError: parameters that are not those of the table.
        """
        flat = flatten(parameters)
        _require_paths(flat, [info.path for info in self.table])
        return (
            unflatten({path: part.take(flat[path]) for path, part in self.trainable.items()}),
            unflatten({path: part.take(flat[path]) for path, part in self.frozen.items()}),
        )

    def join(self, trainable: Mapping[str, Any], frozen: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the parameters that `split` makes these of; differentiable in both.

        Raises:
          ValueError: parts that do not belong to this partition.
        """
        trained, held = flatten(trainable), flatten(frozen)
        _require_paths(trained, self.trainable)
        _require_paths(held, self.frozen)
        joined = {}
        for info in self.table:
            path = info.path
            if path in trained and path in held:
                # Scattered, not concatenated: one operation whatever the pattern of members.
                whole = jnp.zeros(info.shape, held[path].dtype)
                whole = self.frozen[path].put(whole, held[path])
                joined[path] = self.trainable[path].put(whole, trained[path])
            else:
                joined[path] = trained[path] if path in trained else held[path]
        return unflatten(joined)

    def select(self, patterns: Iterable[str]) -> dict[str, Bool[np.ndarray, "..."]]:
        """Returns what the patterns cover of the trainable leaves.

        Returns:
          For each path with anything covered, a mask over the leaf's leading axes that enumerate
          bricks: (layer), (layer, expert) or (member); shape `()` where there are none.

        Raises:
          InputError: a pattern that covers no parameter, trainable or frozen.
        """
        masks = {
            path: self.trainable[path].take_mask(mask)
            for path, mask in self.table.select(patterns).items()
            if path in self.trainable
        }
        return {path: mask for path, mask in masks.items() if mask.any()}


def _members(info: ParameterInfo, mask: Bool[np.ndarray, "..."]) -> Members:
    """Returns the part of a parameter that a mask over its bank covers, on the nicest axis."""
    if mask.all():
        return Members(info)
    by_layer = mask.reshape(mask.shape[0], -1)
    if (by_layer.all(1) == by_layer.any(1)).all():
        return Members(info, 0, _indices(by_layer.any(1)))
    if (mask.all(0) == mask.any(0)).all():
        return Members(info, 1, _indices(mask.any(0)))
    return Members(info, 0, _indices(mask.reshape(-1)), flattened=True)


def _indices(mask: Bool[np.ndarray, "N"]) -> tuple[int, ...]:
    return tuple(int(i) for i in np.flatnonzero(mask))


def _require_paths(flat: Mapping[str, jax.Array], expected: Iterable[str]) -> None:
    known = set(expected)
    if flat.keys() != known:
        raise ValueError(
            f"parameters of another partition: missing {sorted(known - flat.keys())}, "
            f"unexpected {sorted(flat.keys() - known)}"
        )
