"""The forward kernel for Hopper GPUs.

A block of the grid takes 128 rows, that is queries of a head. Two warpgroups compute 64 of them
each; a third copies blocks of keys and values into shared memory ahead of them, the nearest first.
Between the two matrix products of a tile the sticks are broken in registers (`registers`).

With a tolerance, the computing warpgroups report with each block of keys that they hand back
whether all their rows have less of their sticks left. When both do, the copying one halts them.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.experimental.pallas as pl
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
from jax import lax

from pallas_kernels.attention.stickbreaking.gpu import registers, tiles
from pallas_kernels.attention.stickbreaking.gpu.tiles import (
    BLOCK_ROWS,
    COMPUTE_GROUPS,
    ROWS_PER_GROUP,
    Problem,
)


def forward(
    problem: Problem,
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    offset: jax.Array,
    *ids: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Runs the kernel.

    Args:
      problem: what the kernel is compiled for.
      query: `[B, Sq, H, d]`; Sq is a multiple of 128, widths of 64.
      key: `[B, Sk, G, d]`, blocks in the order of `registers.permute_keys`.
      value: `[B, Sk, G, dv]`, likewise.
      offset: int32 `[1]`, the position of row 0.
      *ids: int32 `[B, Sq]` and `[B, Sk]` (in blocks like keys), if the problem has segments.

    Returns:
      output float32 `[B, Sq, H, dv]`, remainder float32 `[B, H, Sq]` and, int32 `[B, H, blocks]`,
      how many blocks of keys each block of rows visited.
    """
    batch, length, heads, width = query.shape
    value_width = value.shape[-1]
    group_size = heads // key.shape[2]
    keys, stages = problem.keys, problem.stages
    tile = (ROWS_PER_GROUP, keys)

    def body(q_ref: Any, k_ref: Any, v_ref: Any, offset_ref: Any, *refs: Any) -> None:
        id_refs, refs = (refs[:2], refs[2:]) if problem.segments else ((), refs)
        output_ref, remainder_ref, count_ref, *scoped = refs
        q_smem, k_smem, v_smem, below, halted, q_full, k_full, v_full, k_free, v_free = scoped
        head, batch = lax.axis_index("head"), lax.axis_index("batch")
        group = lax.axis_index("warpgroup")
        # The last rows see the most keys: they begin first.
        block = length // BLOCK_ROWS - 1 - lax.axis_index("block")
        offset = offset_ref[0]
        low, high = problem.key_blocks(block * BLOCK_ROWS, BLOCK_ROWS, offset)
        steps = jnp.maximum(high - low, 0)

        def stage_of(index: jax.Array) -> jax.Array:
            return lax.rem(index, jnp.int32(stages))

        @pl.when(group < COMPUTE_GROUPS)
        def _compute() -> None:
            plgpu.set_max_registers(232, action="increase")
            first = block * BLOCK_ROWS + group * ROWS_PER_GROUP
            rows = pl.ds(first, ROWS_PER_GROUP)
            plgpu.copy_gmem_to_smem(q_ref.at[batch, rows, head], q_smem.at[group], q_full.at[group])
            row_ids = tiles.load_rows(id_refs[0].at[batch, rows]) if id_refs else None
            plgpu.barrier_wait(q_full.at[group])

            def wait_for(index: jax.Array) -> jax.Array:
                """Waits for a block of keys; whether there is none, as the walk is halted."""
                plgpu.barrier_wait(k_full.at[stage_of(index)])
                return halted[stage_of(index)] if problem.tolerance else jnp.int32(0)

            def wait_for_next(index: jax.Array) -> jax.Array:
                return lax.cond(
                    index + 1 < steps, lambda: wait_for(index + 1), lambda: jnp.int32(0)
                )

            def key_block(index: jax.Array, carry: Any, *, masked: bool) -> Any:
                output, stick = carry
                stage, start = stage_of(index), (high - 1 - index) * keys
                column_ids = None
                if id_refs:
                    columns = pl.ds(start, keys)
                    column_ids = tiles.load_columns(id_refs[1].at[batch, columns])

                logits = tiles.product(q_smem.at[group], k_smem.at[stage], tile)
                logits = problem.scaled(logits)
                plgpu.barrier_arrive(k_free.at[stage])
                if masked:
                    logits = problem.masked(logits, first, start, offset)
                logits = problem.same_segment(logits, row_ids, column_ids)
                weights, stick = registers.break_sticks(logits, stick, query.dtype)
                plgpu.barrier_wait(v_full.at[stage])
                output = registers.accumulate(output, weights, v_smem.at[stage])
                if problem.tolerance:
                    below[group, stage] = (jnp.max(stick) < problem.tolerance).astype(jnp.int32)
                plgpu.barrier_arrive(v_free.at[stage])
                return output, stick

            def pass_over(index: jax.Array, carry: Any) -> Any:
                stage = stage_of(index)
                plgpu.barrier_arrive(k_free.at[stage])
                plgpu.barrier_wait(v_full.at[stage])
                if problem.tolerance:
                    below[group, stage] = jnp.int32(0)
                plgpu.barrier_arrive(v_free.at[stage])
                return carry

            def walk(state: Any, stop: jax.Array, key_block: Any) -> Any:
                def step(state: Any) -> Any:
                    index, _, carry = state
                    carry = key_block(index, carry)
                    return index + 1, wait_for_next(index), carry

                def goes_on(state: Any) -> jax.Array:
                    index, halt, _ = state
                    return (index < stop) & (halt == 0)

                return lax.while_loop(goes_on, step, state)

            output = plgpu.layout_cast(
                jnp.zeros((ROWS_PER_GROUP, value_width), jnp.float32), registers.TILE
            )
            stick = plgpu.layout_cast(jnp.ones((ROWS_PER_GROUP,), jnp.float32), registers.ROWS)
            state = (jnp.int32(0), jnp.int32(0), (output, stick))
            pl.when(steps > 0)(lambda: _nothing(wait_for(jnp.int32(0))))
            for kind, stop in problem.phases(first, high, steps, offset):
                masked = functools.partial(key_block, masked=kind == "masked")
                state = walk(state, stop, pass_over if kind == "unseen" else masked)
            count, _, (output, stick) = state
            output_ref[batch, rows, head] = output
            remainder_ref[batch, head, rows] = stick

            @pl.when(group == 0)
            def _count() -> None:
                count_ref[batch, head, block] = count

        @pl.when(group == COMPUTE_GROUPS)
        def _copy() -> None:
            plgpu.set_max_registers(40, action="decrease")
            key_head = lax.div(head, jnp.int32(group_size))
            if problem.tolerance:
                for stage in range(stages):
                    halted[stage] = jnp.int32(0)

            def copy(index: jax.Array) -> None:
                stage = stage_of(index)
                source = (batch, pl.ds((high - 1 - index) * keys, keys), key_head)
                plgpu.copy_gmem_to_smem(k_ref.at[source], k_smem.at[stage], k_full.at[stage])
                plgpu.copy_gmem_to_smem(v_ref.at[source], v_smem.at[stage], v_full.at[stage])

            def wait_until_free(index: jax.Array) -> jax.Array:
                """Waits until a visited block is handed back; whether all rows are below."""
                stage = stage_of(index)
                plgpu.barrier_wait(k_free.at[stage])
                plgpu.barrier_wait(v_free.at[stage])
                if not problem.tolerance:
                    return jnp.int32(0)
                return below[0, stage] & below[1, stage]

            ahead = jnp.minimum(steps, stages)
            lax.fori_loop(0, ahead, lambda index, _: copy(index), None)

            def follow(state: Any) -> Any:
                index, _ = state
                halt = wait_until_free(index - stages)

                pl.when(halt == 0)(lambda: copy(index))
                return index + 1 - halt, halt

            copied, halt = lax.while_loop(
                lambda state: (state[0] < steps) & (state[1] == 0), follow, (ahead, jnp.int32(0))
            )
            if problem.tolerance:

                @pl.when(halt != 0)
                def _halt() -> None:
                    halted[stage_of(copied)] = jnp.int32(1)
                    plgpu.barrier_arrive(k_full.at[stage_of(copied)])

            returned = jnp.maximum(copied - stages, 0) + halt
            lax.fori_loop(returned, copied, lambda i, _: _nothing(wait_until_free(i)), None)

    shared = functools.partial(tiles.shared_tiles, dtype=query.dtype)
    return plgpu.kernel(
        body,
        out_type=(
            jax.ShapeDtypeStruct((batch, length, heads, value_width), jnp.float32),
            jax.ShapeDtypeStruct((batch, heads, length), jnp.float32),
            jax.ShapeDtypeStruct((batch, heads, length // BLOCK_ROWS), jnp.int32),
        ),
        scratch_types=(
            shared(COMPUTE_GROUPS, ROWS_PER_GROUP, width),
            shared(stages, keys, width),
            shared(stages, keys, value_width),
            plgpu.SMEM((COMPUTE_GROUPS, stages), jnp.int32),
            plgpu.SMEM((stages,), jnp.int32),
            plgpu.Barrier(num_barriers=COMPUTE_GROUPS),
            plgpu.Barrier(num_barriers=stages),
            plgpu.Barrier(num_barriers=stages),
            plgpu.Barrier(num_arrivals=COMPUTE_GROUPS, num_barriers=stages),
            plgpu.Barrier(num_arrivals=COMPUTE_GROUPS, num_barriers=stages),
        ),
        grid=(heads, length // BLOCK_ROWS, batch),
        grid_names=("head", "block", "batch"),
        num_threads=COMPUTE_GROUPS + 1,
        thread_name="warpgroup",
        compiler_params=tiles.COMPILER,
    )(query, key, value, offset, *ids)


def _nothing(_: Any) -> None:
    return None
