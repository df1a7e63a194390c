"""The kernel for the gradients of keys and values on Hopper GPUs.

A block of the grid takes 64 keys and goes through the rows that see them, 128 at a time, of all
heads that share the keys; it goes on from what `d_query` wrote down. Two warpgroups break the
sticks of 64 rows each and put weights and gradients of the logits into shared memory. Then one adds
to the gradient of the values, the other to that of the keys. So every gradient is summed by one
warpgroup in one order: no atomic additions, and the same bits each time.
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


def d_key_value(
    problem: Problem,
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    d_output: jax.Array,
    sticks: jax.Array,
    rests: jax.Array,
    bound: jax.Array,
    counts: jax.Array,
    offset: jax.Array,
    *ids: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Runs the kernel.

    Args:
      problem: what the kernel is compiled for; its blocks have 64 keys.
      query: as `d_query.d_query` takes them, like key, value, d_output, bound, counts, offset
        and ids.
      key: see there.
      value: see there.
      d_output: see there.
      sticks: float32 `[B, H, key blocks, Sq]`, what is left in front of each block of keys.
      rests: likewise.
      bound: see there.
      counts: see there.
      offset: see there.
      *ids: see there.

    Returns:
      d_key, not scaled, and d_value, float32 `[B, Sk, G, d]` in blocks like keys.
    """
    length, heads, width = query.shape[1:]
    batch, key_length, key_heads, _ = key.shape
    group_size = heads // key_heads
    keys, stages = problem.keys, problem.stages
    assert keys == ROWS_PER_GROUP, "keys become the rows of a product"
    tile = (ROWS_PER_GROUP, keys)
    row_blocks = length // BLOCK_ROWS

    def body(q_ref: Any, k_ref: Any, v_ref: Any, do_ref: Any, *refs: Any) -> None:
        stick_ref, rest_ref, bound_ref, count_ref, offset_ref, *others = refs
        id_refs, others = (others[:2], others[2:]) if problem.segments else ([], others)
        dk_ref, dv_ref, *scoped = others
        k_smem, v_smem, row_smem, pair_smem, kv_full, row_full, row_free, written, read = scoped
        key_head, batch = lax.axis_index("head"), lax.axis_index("batch")
        group = lax.axis_index("warpgroup")
        # The first keys are seen by the most rows: they begin first.
        block = lax.axis_index("block")
        offset = offset_ref[0]
        low, high = problem.row_blocks(block, row_blocks, offset)
        count = jnp.maximum(high - low, 0)

        def place(index: jax.Array) -> tuple[jax.Array, jax.Array]:
            """Head and block of rows of a step."""
            head = key_head * group_size + index // jnp.maximum(count, 1)
            return head, low + lax.rem(index, jnp.maximum(count, 1))

        def walk(compute: Any, carry: Any) -> Any:
            """`compute(stage, head, row_block, number, carry)` for each visited block of rows."""

            def step(index: jax.Array, state: Any) -> Any:
                number, carry = state
                head, row_block = place(index)

                def go(carry: Any) -> Any:
                    return compute(
                        lax.rem(number, jnp.int32(stages)), head, row_block, number, carry
                    )

                if not problem.tolerance:
                    return number + 1, go(carry)
                _, last = problem.key_blocks(row_block * BLOCK_ROWS, BLOCK_ROWS, offset)
                visited = last - 1 - block < count_ref[batch, head, row_block]
                carry = lax.cond(visited, go, lambda carry: carry, carry)
                return number + visited.astype(jnp.int32), carry

            return lax.fori_loop(0, count * group_size, step, (jnp.int32(0), carry))

        @pl.when(group < COMPUTE_GROUPS)
        def _compute() -> None:
            plgpu.set_max_registers(232, action="increase")
            start = block * keys
            plgpu.barrier_wait(kv_full)
            column_ids = None
            if id_refs:
                column_ids = tiles.load_columns(id_refs[1].at[batch, pl.ds(start, keys)])

            def compute(
                stage: jax.Array, head: jax.Array, row_block: jax.Array, number: jax.Array, acc: Any
            ) -> Any:
                first = row_block * BLOCK_ROWS + group * ROWS_PER_GROUP
                rows = pl.ds(first, ROWS_PER_GROUP)
                stick = tiles.load_rows(stick_ref.at[batch, head, block, rows])
                rest = tiles.load_rows(rest_ref.at[batch, head, block, rows])
                bound = tiles.load_rows(bound_ref.at[batch, head, rows])
                row_ids = tiles.load_rows(id_refs[0].at[batch, rows]) if id_refs else None
                plgpu.barrier_wait(row_full.at[stage])
                logits = tiles.product(row_smem.at[stage, 1, group], k_smem, tile)
                d_weights = tiles.product(row_smem.at[stage, 0, group], v_smem, tile)
                full_low, full_high = problem.full_key_blocks(first, ROWS_PER_GROUP, offset)
                logits = lax.cond(
                    (full_low <= block) & (block < full_high),
                    lambda logits: logits,
                    lambda logits: problem.masked(logits, first, start, offset),
                    problem.scaled(logits),
                )
                logits = problem.same_segment(logits, row_ids, column_ids)
                weights, d_logits, _, _ = registers.d_logits(
                    logits, d_weights, stick, rest, bound, query.dtype
                )

                @pl.when(number > 0)
                def _wait() -> None:
                    plgpu.barrier_wait(read)

                pair_smem[0, group] = weights
                pair_smem[1, group] = d_logits
                plgpu.commit_smem()
                plgpu.barrier_arrive(written)
                plgpu.barrier_wait(written)

                acc = registers.accumulate_transposed(
                    acc,
                    *(
                        (pair_smem.at[group, half], row_smem.at[stage, group, half])
                        for half in range(COMPUTE_GROUPS)
                    ),
                )
                plgpu.barrier_arrive(read)
                plgpu.barrier_arrive(row_free.at[stage])
                return acc

            acc = plgpu.layout_cast(jnp.zeros((keys, width), jnp.float32), registers.TILE)
            number, acc = walk(compute, acc)
            pl.when(number > 0)(lambda: plgpu.barrier_wait(read))
            target = (batch, pl.ds(start, keys), key_head)

            @pl.when(group == 0)
            def _store_d_value() -> None:
                dv_ref[target] = acc

            @pl.when(group == 1)
            def _store_d_key() -> None:
                dk_ref[target] = acc

        @pl.when(group == COMPUTE_GROUPS)
        def _copy() -> None:
            plgpu.set_max_registers(40, action="decrease")
            source = (batch, pl.ds(block * keys, keys), key_head)
            plgpu.copy_gmem_to_smem(k_ref.at[source], k_smem, kv_full)
            plgpu.copy_gmem_to_smem(v_ref.at[source], v_smem, kv_full)

            def copy(
                stage: jax.Array, head: jax.Array, row_block: jax.Array, number: jax.Array, _: None
            ) -> None:
                pl.when(number >= stages)(lambda: plgpu.barrier_wait(row_free.at[stage]))
                for which, ref in enumerate((do_ref, q_ref)):
                    for half in range(COMPUTE_GROUPS):
                        first = row_block * BLOCK_ROWS + half * ROWS_PER_GROUP
                        plgpu.copy_gmem_to_smem(
                            ref.at[batch, pl.ds(first, ROWS_PER_GROUP), head],
                            row_smem.at[stage, which, half],
                            row_full.at[stage],
                        )

            number, _ = walk(copy, None)

            def wait_until_free(index: jax.Array, _: None) -> None:
                plgpu.barrier_wait(row_free.at[lax.rem(index, jnp.int32(stages))])

            lax.fori_loop(jnp.maximum(number - stages, 0), number, wait_until_free, None)

    shared = functools.partial(tiles.shared_tiles, dtype=query.dtype)
    gradient = jax.ShapeDtypeStruct(key.shape, jnp.float32)
    return plgpu.kernel(
        body,
        out_type=(gradient, gradient),
        scratch_types=(
            shared(keys, width),
            shared(keys, width),
            shared(stages, 2, COMPUTE_GROUPS, ROWS_PER_GROUP, width),
            shared(2, COMPUTE_GROUPS, ROWS_PER_GROUP, keys),
            plgpu.Barrier(num_arrivals=2),
            plgpu.Barrier(num_arrivals=2 * COMPUTE_GROUPS, num_barriers=stages),
            plgpu.Barrier(num_arrivals=COMPUTE_GROUPS, num_barriers=stages),
            plgpu.Barrier(num_arrivals=COMPUTE_GROUPS),
            plgpu.Barrier(num_arrivals=COMPUTE_GROUPS),
        ),
        grid=(key_heads, key_length // keys, batch),
        grid_names=("head", "block", "batch"),
        num_threads=COMPUTE_GROUPS + 1,
        thread_name="warpgroup",
        compiler_params=tiles.COMPILER,
    )(query, key, value, d_output, sticks, rests, bound, counts, offset, *ids)
