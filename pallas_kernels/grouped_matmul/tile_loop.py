"""One loop over the experts that have rows, doing the useful rows only.

Each expert's rows are cut into tiles of the largest compiled height and one tile of the smallest
compiled height that holds what is left (`block_sizes.tile_heights`). An expert's weights are sliced
once, whatever the number of its tiles.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from pallas_kernels.grouped_matmul.plan import RoutingPlan

Rows = tuple[Array, ...]
Sums = tuple[Array, ...]
# tile(height, start, count, weights of the expert) -> (rows to write at `start`, [height, ...] each;
# terms to add to the expert's sums).
Tile = Callable[[int, Array, Array, tuple[Any, ...]], tuple[Rows, Sums]]


def loop_over_experts(
    plan: RoutingPlan,
    heights: tuple[int, ...],
    weights: tuple[Array, ...],
    row_buffers: Rows,
    expert_sums: Sums,
    tile: Tile,
) -> tuple[Rows, Sums]:
    """Runs `tile` over every expert's rows.

    Args:
        plan: the routing plan.
        heights: ascending tile heights.
        weights: arrays [E, ...]; `tile` gets the expert's slice of each.
        row_buffers: arrays [T*K + heights[-1], ...] that receive the rows. A tile may be taller
            than what is left of its expert's rows: what it writes beyond is overwritten by the next
            expert's tile, or lies past all groups.
        expert_sums: zeros [E, ...] that receive the sums of the expert's terms.
        tile: computes one tile.
    """
    limit = heights[-1]
    has_rows = plan.group_sizes > 0
    busy = jnp.argsort(~has_rows, stable=True)
    bounds = jnp.asarray(heights[:-1], jnp.int32)

    def visit(i: Array, state: tuple[Rows, Sums]) -> tuple[Rows, Sums]:
        buffers, sums = state
        expert = busy[i]
        start, size = plan.group_offsets[expert], plan.group_sizes[expert]
        mine = tuple(
            jax.lax.dynamic_index_in_dim(w, expert, keepdims=False) for w in weights
        )
        full_tiles = (size - 1) // limit
        rest = size - full_tiles * limit

        def run(height: int, start: Array, count: Array, buffers: Rows) -> tuple[Rows, Sums]:
            rows, terms = tile(height, start, count, mine)
            written = tuple(
                jax.lax.dynamic_update_slice_in_dim(buffer, row.astype(buffer.dtype), start, axis=0)
                for buffer, row in zip(buffers, rows, strict=True)
            )
            return written, terms

        # The partial tile goes first: the full tiles then overwrite what it wrote beyond its rows.
        branches = [lambda *args, h=height: run(h, *args) for height in heights]
        which = jnp.sum(rest > bounds)
        buffers, terms = jax.lax.switch(which, branches, start, rest, buffers)

        def add_full(j: Array, state: tuple[Rows, Sums]) -> tuple[Rows, Sums]:
            buffers, terms = state
            first = start + rest + j * limit
            buffers, more = run(limit, first, jnp.int32(limit), buffers)
            return buffers, tuple(a + b for a, b in zip(terms, more, strict=True))

        buffers, terms = jax.lax.fori_loop(0, full_tiles, add_full, (buffers, terms))
        sums = tuple(
            jax.lax.dynamic_update_index_in_dim(total, term.astype(total.dtype), expert, 0)
            for total, term in zip(sums, terms, strict=True)
        )
        return buffers, sums

    return jax.lax.fori_loop(0, jnp.sum(has_rows), visit, (row_buffers, expert_sums))
