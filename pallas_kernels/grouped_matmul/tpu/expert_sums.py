"""Sums over each expert's rows, kept in VMEM in float32 and copied to HBM when they are whole.

With two cores, one expert can have rows on both. Each core then leaves its part as it is, in
float32, and the two are added after the kernel.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.typing import DTypeLike

from pallas_kernels.grouped_matmul.tpu.tiles import Block, WorkItem
from pallas_kernels.grouped_matmul.tpu.work_list import WorkList


@dataclasses.dataclass(frozen=True)
class ExpertSums:
    """One sum over rows for each expert, inside a kernel of `tiles.tile_call`.

    The work list has every expert.

    Attributes:
        experts: E.
        shape: of a sum.
        dtype: of the results.
        cores: that the work list is divided between.
    """

    experts: int
    shape: tuple[int, ...]
    dtype: DTypeLike
    cores: int

    @property
    def results(self) -> list[tuple[jax.ShapeDtypeStruct, Block | None]]:
        """The kernel's further results, for `Sums.of`."""
        whole = jax.ShapeDtypeStruct((self.experts, *self.shape), self.dtype)
        part = jax.ShapeDtypeStruct(self.shape, jnp.float32)
        return [(whole, None), *([(part, None)] * (self.cores if self.cores > 1 else 0))]

    @property
    def scratch(self) -> list[Any]:
        """The kernel's further scratch memory, for `Sums.of`."""
        return [
            pltpu.VMEM(self.shape, jnp.float32),
            pltpu.VMEM(self.shape, self.dtype),
            pltpu.SemaphoreType.DMA(()),
        ]

    def _join(self, whole: Array, part: Array, rest: Array, work: WorkList) -> Array:
        last, going_on = work.partial
        both = part + jnp.where(going_on >= 0, rest, 0)
        return lax.dynamic_update_index_in_dim(whole, both.astype(self.dtype), last, 0)


def joined(
    specs: Sequence[ExpertSums], results: Sequence[Array], work: WorkList, rows: Array
) -> tuple[Array, list[Array]]:
    """[E, ...] of each, from their results of the kernel, and before that its rows.

    The rows are passed through: whoever goes on with them does it when the parts are no more.
    """
    if work.cores == 1:
        return rows, list(results)
    each = zip(results[::3], results[1::3], results[2::3], strict=True)
    sums = [spec._join(*own, work) for spec, own in zip(specs, each, strict=True)]
    return lax.optimization_barrier((rows, sums))


@dataclasses.dataclass(frozen=True)
class Sums:
    """The same inside the kernel.

    Attributes:
        total: the sum so far.
    """

    spec: ExpertSums
    item: WorkItem
    total: Any
    _staged: Any
    _semaphore: Any
    _result: Any
    _parts: tuple[Any, ...]

    @classmethod
    def of(cls, spec: ExpertSums, item: WorkItem, results: list[Any], scratch: list[Any]) -> Sums:
        """Takes its refs from the front of the kernel's."""
        total, staged, semaphore = (scratch.pop(0) for _ in range(3))
        result = results.pop(0)
        parts = tuple(results.pop(0) for _ in spec.results[1:])
        return cls(spec, item, total, staged, semaphore, result, parts)

    @property
    def _closes(self) -> Any:
        return self.item.closes_expert & (self.item.expert < self.spec.experts)

    @property
    def _is_part(self) -> Any:
        return self.item.expert == self.item.partial

    @property
    def _copies_earlier(self) -> Any:
        """Returns whether the core has started to copy the sum of an expert before this item's."""
        first = self.item.first_expert
        if self.spec.cores == 1:
            return self.item.expert > first
        # The second core's part is that of its first expert.
        skipped = jnp.where((self.item.core > 0) & (first == self.item.partial), 1, 0)
        return self.item.expert > first + skipped

    def _wait(self) -> None:
        pltpu.make_async_copy(self._staged, self._result.at[0], self._semaphore).wait()

    def open(self) -> None:
        """Clears the sum before an expert's first rows are added."""

        @pl.when(self.item.opens_expert)
        def _() -> None:
            self.total[...] = jnp.zeros_like(self.total)

    def stage(self) -> None:
        """Rounds the sum after an expert's last rows are added, once the copy before is done."""

        @pl.when(self._closes & self._copies_earlier)
        def _() -> None:
            self._wait()

        @pl.when(self._closes)
        def _() -> None:
            self._staged[...] = self.total[...].astype(self._staged.dtype)

    def copy(self) -> None:
        """Starts the copy of what was staged, which runs while the next expert's rows are added."""
        closes, item = self._closes, self.item
        remains = jnp.where(closes, True, self._copies_earlier)
        whole = closes
        if self.spec.cores > 1:
            whole = closes & ~self._is_part

            for core, place in enumerate(self._parts):

                @pl.when(closes & self._is_part & (item.core == core))
                def _(place: Any = place) -> None:
                    part = pltpu.make_async_copy(self.total, place, self._semaphore)
                    part.start()
                    part.wait()

            # The first core's last expert is a part, before which the others were waited for.
            remains = (item.core > 0) & jnp.where(closes, whole, self._copies_earlier)

        @pl.when(whole)
        def _() -> None:
            place = self._result.at[item.expert]
            pltpu.make_async_copy(self._staged, place, self._semaphore).start()

        @pl.when(item.ends & remains)
        def _() -> None:
            self._wait()
