"""Parts of stacked parameters: what a run trains of a bank, and what it holds as it is."""

from __future__ import annotations

import bisect
import dataclasses
import functools
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec, Sharding
from jaxtyping import Array

from modbrick.parameters.partition import Partition
from modbrick.parameters.slices import brick_view


@dataclasses.dataclass(frozen=True)
class Part:
    """Members of a bank that one array holds, the others being in another array.

    Attributes:
      shape: of the whole.
      axis: along which members are taken, in the view in which they are numbered.
      indices: of the members along that axis, ascending.
      flattened: the view has one axis for the first two, layers and experts, layer by layer.
    """

    shape: tuple[int, ...]
    axis: int
    indices: tuple[int, ...]
    flattened: bool = False

    @property
    def view(self) -> tuple[int, ...]:
        """Shape in which the whole is seen for taking members."""
        return brick_view(self.shape, self.flattened)

    @property
    def others(self) -> Part:
        """The part that holds all other members."""
        mine = set(self.indices)
        rest = tuple(i for i in range(self.view[self.axis]) if i not in mine)
        return dataclasses.replace(self, indices=rest)

    def runs(
        self, index: tuple[slice, ...]
    ) -> Iterator[tuple[tuple[slice, ...], tuple[slice, ...]]]:
        """Yields what the part has of a slice of the whole, by runs of neighbouring members.

        Args:
          index: of the slice, every bound given.

        Yields:
          Where a run lies in the whole, and where in the part.
        """
        if not self.flattened:
            span = index[self.axis]
            for first, start, stop in self._runs(span.start, span.stop):
                mine = slice(first, first + stop - start)
                before, after = index[: self.axis], index[self.axis + 1 :]
                yield (*before, slice(start, stop), *after), (*before, mine, *after)
            return
        layers, experts, *rest = index
        for layer in range(layers.start, layers.stop):
            offset = layer * self.shape[1]
            for first, start, stop in self._runs(offset + experts.start, offset + experts.stop):
                of_layer = (slice(layer, layer + 1), slice(start - offset, stop - offset), *rest)
                yield of_layer, (slice(first, first + stop - start), *rest)

    def _runs(self, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """Yields runs of members between two numbers: place in the part, first and last + 1."""
        first, last = (
            bisect.bisect_left(self.indices, start),
            bisect.bisect_left(self.indices, stop),
        )
        while first < last:
            count = 1
            while (
                first + count < last and self.indices[first + count] == self.indices[first] + count
            ):
                count += 1
            yield first, self.indices[first], self.indices[first] + count
            first += count

    def take(self, whole: Array) -> Array:
        """Returns the members of a whole array."""
        return jnp.take(whole.reshape(self.view), np.asarray(self.indices), self.axis)

    def join(self, mine: Array, others: Array) -> Array:
        """Returns the whole that has these members and those of `others`, in the wider dtype."""
        dtype = jnp.promote_types(mine.dtype, others.dtype)
        whole = jnp.zeros(self.view, dtype)
        for part, values in ((self, mine), (self.others, others)):
            index = (*(slice(None),) * part.axis, np.asarray(part.indices))
            whole = whole.at[index].set(values.astype(dtype), unique_indices=True)
        return whole.reshape(self.shape)

    def sharding_of_part(self, whole: Sharding) -> Sharding:
        """Returns how to lay out the part of a whole: alike, the axis of members undivided."""
        if not isinstance(whole, NamedSharding):
            return whole
        spec = [*whole.spec, *[None] * (len(self.shape) - len(whole.spec))]
        return _undivided(whole, spec[1:] if self.flattened else spec, self.axis)

    def sharding_of_whole(self, part: Sharding) -> Sharding:
        """Returns how to lay out the whole of a part: alike, the axis of members undivided."""
        if not isinstance(part, NamedSharding):
            return part
        spec = [*part.spec, *[None] * (len(self.view) - len(part.spec))]
        return _undivided(part, [None, *spec] if self.flattened else spec, self.axis)


@dataclasses.dataclass(frozen=True, eq=False)
class SplitParameters:
    """Parameters of a run that trains a part of them.

    Attributes:
      partition: what is trained of the model's parameters.
      trainable: arrays by path, flat or nested, of the partition's shapes.
      frozen: the same for what is not trained.
    """

    partition: Partition
    trainable: Any
    frozen: Any

    @property
    def parts(self) -> dict[str, Part]:
        """Trainable part of each bank that is trained in part, by path."""
        return {
            path: Part(tuple(members.info.shape), members.axis, members.indices, members.flattened)
            for path, members in self.partition.trainable.items()
            if members.axis is not None
        }


def others(parts: Mapping[str, Part]) -> dict[str, Part]:
    """Returns the parts that hold all other members."""
    return {path: part.others for path, part in parts.items()}


def take(part: Part, whole: Array, sharding: Sharding) -> Array:
    """Returns the members of a whole array, laid out."""
    return _compiled(Part.take, part, sharding)(whole)


def join(part: Part, mine: Array, others: Array, sharding: Sharding) -> Array:
    """Returns the whole array of two parts, laid out."""
    return _compiled(Part.join, part, sharding)(mine, others)


def _compiled(function: Any, part: Part, sharding: Sharding) -> Any:
    return jax.jit(functools.partial(function, part), out_shardings=sharding)


def _undivided(sharding: NamedSharding, spec: list[Any], axis: int) -> NamedSharding:
    spec[axis] = None
    return NamedSharding(sharding.mesh, PartitionSpec(*spec), memory_kind=sharding.memory_kind)
