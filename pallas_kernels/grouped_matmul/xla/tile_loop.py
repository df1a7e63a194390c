"""One loop over the experts that have rows, doing the useful rows only.

Each expert's rows are cut into tiles of the largest compiled height and one tile of the smallest
compiled height that holds what is left (`block_sizes.tile_heights`). An expert's weights are sliced
once, whatever the number of its tiles.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from pallas_kernels.grouped_matmul.plan import RoutingPlan
from pallas_kernels.grouped_matmul.rows import flatten_rows, row_index, take_rows


@dataclasses.dataclass(frozen=True)
class Tile:
    """`height` grouped rows from `start` on, of which the first `count` belong to the expert."""

    height: int
    start: Array
    count: Array

    def own(self) -> Array:
        """Boolean [M, 1]; which rows belong to the expert."""
        return (jnp.arange(self.height, dtype=jnp.int32) < self.count)[:, None]

    def rows(self) -> Array:
        """int32 [M]; the grouped rows. Surplus rows repeat the expert's last row.

        So a tile reads nothing but its own expert's rows: a NaN elsewhere cannot leak in.
        """
        steps = jnp.minimum(jnp.arange(self.height, dtype=jnp.int32), self.count - 1)
        return self.start + steps

    def gather(self, x: Array, plan: RoutingPlan, layout: str, dtype: DTypeLike) -> Array:
        """The tile's rows [M, D] of an array in any layout."""
        index = self.rows()
        if layout != "grouped":
            index = take_rows(row_index(plan, layout), index)
        return take_rows(flatten_rows(x, layout), index).astype(dtype)

    def slice(self, x: Array, dtype: DTypeLike) -> Array:
        """The tile's rows [M, ...] of a padded row buffer; surplus rows are the next expert's."""
        return jax.lax.dynamic_slice_in_dim(x, self.start, self.height).astype(dtype)


Arrays = tuple[Array, ...]
# Given a tile and the expert's slices of the weights: rows to write at the tile, [M, ...] each, and
# the terms to add to the expert's sums. What is written for surplus rows does not matter.
Body = Callable[[Tile, Arrays], tuple[Arrays, Arrays]]


def loop_over_experts(
    plan: RoutingPlan,
    heights: tuple[int, ...],
    weights: Arrays,
    row_buffers: Arrays,
    expert_sums: Arrays,
    body: Body,
) -> tuple[Arrays, Arrays]:
    """Runs `body` over every expert's rows, in ascending order of experts.

    Args:
        plan: the routing plan.
        heights: ascending tile heights.
        weights: arrays [E, ...]; `body` gets the expert's slice of each.
        row_buffers: arrays [T*K + heights[-1], ...] that receive the rows. A tile may be taller
            than what is left of its expert's rows: what it writes beyond is overwritten by the next
            tile, or lies past all groups.
        expert_sums: zeros [E, ...] that receive the sums of the expert's terms.
        body: computes one tile.
    """
    limit = heights[-1]
    has_rows = plan.group_sizes > 0
    busy = jnp.argsort(~has_rows, stable=True)
    shorter = jnp.asarray(heights[:-1], jnp.int32)

    def run(tile: Tile, mine: Arrays, buffers: Arrays) -> tuple[Arrays, Arrays]:
        rows, terms = body(tile, mine)
        written = tuple(
            jax.lax.dynamic_update_slice_in_dim(buffer, row.astype(buffer.dtype), tile.start, 0)
            for buffer, row in zip(buffers, rows, strict=True)
        )
        return written, terms

    def one_expert(i: Array, state: tuple[Arrays, Arrays]) -> tuple[Arrays, Arrays]:
        buffers, sums = state
        expert = busy[i]
        start, size = plan.group_offsets[expert], plan.group_sizes[expert]
        mine = tuple(jax.lax.dynamic_index_in_dim(w, expert, keepdims=False) for w in weights)
        full_tiles = (size - 1) // limit
        rest = size - full_tiles * limit

        # The partial tile goes first: the full tiles then overwrite what it wrote beyond its rows,
        # and an expert with one tile, the common case, needs no sum to start from.
        def partial(height: int) -> Callable[[Arrays], tuple[Arrays, Arrays]]:
            return lambda buffers: run(Tile(height, start, rest), mine, buffers)

        buffers, terms = jax.lax.switch(
            jnp.sum(rest > shorter), [partial(height) for height in heights], buffers
        )

        def add_full(j: Array, state: tuple[Arrays, Arrays]) -> tuple[Arrays, Arrays]:
            buffers, terms = state
            tile = Tile(limit, start + rest + j * limit, jnp.int32(limit))
            buffers, more = run(tile, mine, buffers)
            return buffers, tuple(a + b for a, b in zip(terms, more, strict=True))

        if limit < plan.num_slots:  # or else one tile always suffices
            buffers, terms = jax.lax.fori_loop(0, full_tiles, add_full, (buffers, terms))
        sums = tuple(
            jax.lax.dynamic_update_index_in_dim(total, term.astype(total.dtype), expert, 0)
            for total, term in zip(sums, terms, strict=True)
        )
        return buffers, sums

    result: tuple[Arrays, Arrays] = jax.lax.fori_loop(
        0, jnp.sum(has_rows), one_expert, (row_buffers, expert_sums)
    )
    return result
