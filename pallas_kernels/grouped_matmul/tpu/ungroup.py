"""From grouped rows back to slots or tokens: each token fetches the rows of its slots."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.typing import DTypeLike

from pallas_kernels.grouped_matmul.plan import RoutingPlan
from pallas_kernels.grouped_matmul.tpu.block_sizes import cores_in_force, vmem_limit
from pallas_kernels.grouped_matmul.tpu.matmul import as_column
from pallas_kernels.grouped_matmul.tpu.rows import (
    LANES,
    by_choice,
    index_blocks,
    load_columns,
    round_up,
    start_rows,
    unpacked_dtype,
    wait_rows,
)

_FETCHED_BYTES = 4 * 2**20
# Each is written out in the kernel.
_MOST_COPIES = 1024


def _height(tokens: int, slots: int, row_bytes: int) -> int:
    """Tokens of a tile: as many as fit the fetch buffers, at most a register's lanes."""
    most = min(_FETCHED_BYTES // row_bytes, _MOST_COPIES)
    height = LANES
    while height > 16 and height * slots > most:
        height //= 2
    return min(height, round_up(tokens, 16))


def ungroup_rows(
    rows: Array,
    plan: RoutingPlan,
    width: int,
    *,
    layout: str,
    gates: Array | None,
    output_dtype: DTypeLike,
) -> Array:
    """Brings grouped rows to slots, or sums them by token.

    The sum runs over the slots of a token in their order, in float32, whatever the plan.

    Args:
        rows: packed, as `matmul.expert_products` leaves them; rows without an expert may hold
            anything.
        plan: the routing plan.
        width: N, of the rows.
        layout: "slots" or "tokens".
        gates: [T, K], weights of the sum; ones if None.
        output_dtype: of the result.

    Returns:
        [T, K, N] or [T, N].
    """
    tokens, slots = plan.num_tokens, plan.experts_per_token
    summed = layout == "tokens"
    dtype = unpacked_dtype(rows)
    height = _height(tokens, slots, rows.shape[0] * LANES * rows.dtype.itemsize)
    tiles = -(-tokens // height)
    rows_of_slots = by_choice(plan.inverse, slots) if summed else plan.inverse
    # One weight for each slot, 0 where it has no expert, whose row may hold anything.
    weights = jnp.ones((), jnp.float32) if gates is None else gates.T.astype(jnp.float32)
    weights = jnp.where(rows_of_slots < plan.group_offsets[-1], weights, 0)

    def by_part(values: Array) -> Array:
        """Cuts the slots of each tile into parts of `height`, [slots, tiles, height].

        For a sum all first slots of a tile, then all second ones, and so on; otherwise as they
        follow one another.
        """
        if summed:
            padding = ((0, 0), (0, tiles * height - tokens))
            return jnp.pad(values, padding).reshape(slots, tiles, height)
        filled = jnp.pad(values, (0, tiles * slots * height - plan.num_slots))
        return filled.reshape(tiles, slots, height).swapaxes(0, 1)

    # An axis of 1 before the last: blocks may have any height, and slots need not change places.
    weights = by_part(weights)[:, :, None]
    index = by_part(rows_of_slots).swapaxes(0, 1)
    blocks = index_blocks(index.reshape(-1), rows.shape[1], slots * height)
    # Slots lie in rows: an axis of a few slots would fill whole registers.
    out_rows = 1 if summed else slots
    cores = min(cores_in_force(), tiles)
    steps = -(-tiles // cores)

    def tile(core: Any, step: Any) -> Any:
        # Where the second core has a tile less, it makes its last one twice.
        return step if cores == 1 else jnp.minimum(core * steps + step, tiles - 1)

    def kernel(
        source: Any, now: Any, ahead: Any, weight: Any, out: Any, raw: Any, sem: Any
    ) -> None:
        step = pl.program_id(1)
        buffer = lax.rem(step, 2)

        @pl.when(step == 0)
        def _() -> None:
            def part(j: Any, carry: None) -> None:
                start_rows(source, now, raw.at[0], sem.at[0], j * height, height)

            lax.fori_loop(0, slots, part, None)

        wait_rows(raw.at[buffer], sem.at[buffer])

        def fetch(first: int, count: int) -> None:
            start_rows(source, ahead, raw.at[1 - buffer], sem.at[1 - buffer], first, count)

        def picked(k: int) -> Iterator[tuple[Any, Array]]:
            """Columns, and the slots' values there; 0 for slots without an expert."""
            factor = as_column(weight[k])[:, :1]
            for column, y in load_columns(raw.at[buffer], k * height, height, dtype):
                if column < width:
                    some = min(LANES, width - column)
                    y = y[:, :some] * factor if summed else y[:, :some]
                    yield slice(column, column + some), jnp.where(factor != 0, y, 0)

        columns, copies = -(-width // LANES), slots * height
        for i, parts in enumerate(zip(*map(picked, range(slots)), strict=True)):
            # Beside the work on a block of columns, its share of the copies.
            first = copies * i // columns
            fetch(first, copies * (i + 1) // columns - first)
            at, values = parts[0][0], [y for _, y in parts]
            if summed:
                out[:, at] = functools.reduce(jnp.add, values).astype(output_dtype)
                continue
            for k, y in enumerate(values):
                out[pl.ds(k * height, height), at] = y.astype(output_dtype)

        @pl.when(step == steps - 1)
        def _() -> None:
            wait_rows(raw.at[1 - buffer], sem.at[1 - buffer])

    def index_spec(place: Any) -> pl.BlockSpec:
        return pl.BlockSpec((None, 1, slots * height), place, memory_space=pltpu.SMEM)

    outputs = pl.pallas_call(
        kernel,
        out_shape=jax.ShapeDtypeStruct((tokens * out_rows, width), output_dtype),
        grid=(cores, steps),
        in_specs=[
            pl.BlockSpec(memory_space=pltpu.HBM),
            index_spec(lambda c, i: (tile(c, i), 0, 0)),
            index_spec(lambda c, i: (tile(c, lax.rem(i + 1, steps)), 0, 0)),
            pl.BlockSpec((slots, None, 1, height), lambda c, i: (0, tile(c, i), 0, 0)),
        ],
        out_specs=pl.BlockSpec((height * out_rows, width), lambda c, i: (tile(c, i), 0)),
        scratch_shapes=[
            pltpu.VMEM((2, rows.shape[0], slots * height, LANES), rows.dtype),
            pltpu.SemaphoreType.DMA((2,)),
        ],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary"),
            vmem_limit_bytes=vmem_limit(),
            disable_bounds_checks=True,
        ),
        cost_estimate=pl.CostEstimate(
            flops=2 * plan.num_slots * width,
            bytes_accessed=rows.size * rows.dtype.itemsize
            + tokens * out_rows * width * jnp.dtype(output_dtype).itemsize,
            transcendentals=0,
        ),
        name=f"grouped_matmul_to_{layout}",
    )(pltpu.with_memory_space_constraint(rows, pltpu.HBM), blocks, blocks, weights)
    return outputs if summed else outputs.reshape(tokens, slots, width)
