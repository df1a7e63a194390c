"""The kernel for the gradient of the queries on Hopper GPUs.

It walks like the forward kernel, as many blocks of keys, and breaks the sticks again. Before each
block it writes down what is left of the sticks and of the sums of the gradients, from which
`d_key_value` goes on for a block of keys by itself.
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


def d_query(
    problem: Problem,
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    d_output: jax.Array,
    total: jax.Array,
    bound: jax.Array,
    counts: jax.Array,
    offset: jax.Array,
    *ids: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Runs the kernel.

    Args:
      problem: what the kernel is compiled for.
      query: `[B, Sq, H, d]`; Sq is a multiple of 128, d of 64.
      key: `[B, Sk, G, d]`, blocks in the order of `registers.permute_keys`.
      value: `[B, Sk, G, d]`, likewise.
      d_output: `[B, Sq, H, d]`.
      total: float32 `[B, H, Sq]`: `dO . O + drem * rem`.
      bound: float32 `[B, H, Sq]`: how large a sum of gradients can be for a whole stick.
      counts: int32 `[B, H, blocks]`: how many blocks of keys the forward kernel visited.
      offset: int32 `[1]`, the position of row 0.
      *ids: int32 `[B, Sq]` and `[B, Sk]` (in blocks like keys), if the problem has segments.

    Returns:
      d_query float32 `[B, Sq, H, d]`, not scaled, and float32 `[B, H, key blocks, Sq]` twice: what
      is left in front of each block that a row's block walks over, of the stick and of `total`.
    """
    batch, length, heads, width = query.shape
    group_size = heads // key.shape[2]
    keys, stages = problem.keys, problem.stages
    tile = (ROWS_PER_GROUP, keys)

    def body(q_ref: Any, k_ref: Any, v_ref: Any, do_ref: Any, *refs: Any) -> None:
        total_ref, bound_ref, count_ref, offset_ref, *others = refs
        id_refs, others = (others[:2], others[2:]) if problem.segments else ([], others)
        dq_ref, stick_ref, rest_ref, *scoped = others
        q_smem, do_smem, k_smem, v_smem, q_full, do_full, k_full, v_full, k_free, v_free = scoped
        head, batch = lax.axis_index("head"), lax.axis_index("batch")
        group = lax.axis_index("warpgroup")
        block = length // BLOCK_ROWS - 1 - lax.axis_index("block")
        offset = offset_ref[0]
        _, high = problem.key_blocks(block * BLOCK_ROWS, BLOCK_ROWS, offset)
        steps = count_ref[batch, head, block]

        @pl.when(group < COMPUTE_GROUPS)
        def _compute() -> None:
            plgpu.set_max_registers(232, action="increase")
            first = block * BLOCK_ROWS + group * ROWS_PER_GROUP
            rows = pl.ds(first, ROWS_PER_GROUP)
            source = (batch, rows, head)
            plgpu.copy_gmem_to_smem(q_ref.at[source], q_smem.at[group], q_full.at[group])
            plgpu.copy_gmem_to_smem(do_ref.at[source], do_smem.at[group], do_full.at[group])
            row_ids = tiles.load_rows(id_refs[0].at[batch, rows]) if id_refs else None
            rest = tiles.load_rows(total_ref.at[batch, head, rows])
            bound = tiles.load_rows(bound_ref.at[batch, head, rows])
            plgpu.barrier_wait(q_full.at[group])
            plgpu.barrier_wait(do_full.at[group])

            def store_state(index: jax.Array, stick: jax.Array, rest: jax.Array) -> None:
                place = (batch, head, high - 1 - index, rows)
                stick_ref[place] = stick
                rest_ref[place] = rest

            def key_block(index: jax.Array, carry: Any, *, masked: bool) -> Any:
                dq, stick, rest = carry
                stage, start = lax.rem(index, jnp.int32(stages)), (high - 1 - index) * keys
                store_state(index, stick, rest)
                column_ids = None
                if id_refs:
                    column_ids = tiles.load_columns(id_refs[1].at[batch, pl.ds(start, keys)])
                plgpu.barrier_wait(k_full.at[stage])
                logits = tiles.product(q_smem.at[group], k_smem.at[stage], tile)
                plgpu.barrier_wait(v_full.at[stage])
                d_weights = tiles.product(do_smem.at[group], v_smem.at[stage], tile)
                plgpu.barrier_arrive(v_free.at[stage])
                logits = problem.scaled(logits)
                if masked:
                    logits = problem.masked(logits, first, start, offset)
                logits = problem.same_segment(logits, row_ids, column_ids)
                _, d_logits, stick, rest = registers.d_logits(
                    logits, d_weights, stick, rest, bound, query.dtype
                )
                dq = registers.accumulate(dq, d_logits, k_smem.at[stage])
                plgpu.barrier_arrive(k_free.at[stage])
                return dq, stick, rest

            def pass_over(index: jax.Array, carry: Any) -> Any:
                stage = lax.rem(index, jnp.int32(stages))
                store_state(index, *carry[1:])
                for full, free in ((k_full, k_free), (v_full, v_free)):
                    plgpu.barrier_wait(full.at[stage])
                    plgpu.barrier_arrive(free.at[stage])
                return carry

            dq = plgpu.layout_cast(jnp.zeros((ROWS_PER_GROUP, width), jnp.float32), registers.TILE)
            stick = plgpu.layout_cast(jnp.ones((ROWS_PER_GROUP,), jnp.float32), registers.ROWS)
            carry = (dq, stick, rest)
            start = jnp.int32(0)
            for kind, stop in problem.phases(first, high, steps, offset):
                compute = (
                    pass_over
                    if kind == "unseen"
                    else functools.partial(key_block, masked=kind == "masked")
                )
                carry = lax.fori_loop(start, stop, compute, carry)
                start = stop
            dq_ref[batch, rows, head] = carry[0]

        @pl.when(group == COMPUTE_GROUPS)
        def _copy() -> None:
            plgpu.set_max_registers(40, action="decrease")
            key_head = lax.div(head, jnp.int32(group_size))

            def copy(index: jax.Array, _: None) -> None:
                stage = lax.rem(index, jnp.int32(stages))
                source = (batch, pl.ds((high - 1 - index) * keys, keys), key_head)
                for ref, smem, full, free in (
                    (k_ref, k_smem, k_full, k_free),
                    (v_ref, v_smem, v_full, v_free),
                ):
                    pl.when(index >= stages)(functools.partial(plgpu.barrier_wait, free.at[stage]))
                    plgpu.copy_gmem_to_smem(ref.at[source], smem.at[stage], full.at[stage])

            def wait_until_free(index: jax.Array, _: None) -> None:
                stage = lax.rem(index, jnp.int32(stages))
                plgpu.barrier_wait(k_free.at[stage])
                plgpu.barrier_wait(v_free.at[stage])

            lax.fori_loop(0, steps, copy, None)
            lax.fori_loop(jnp.maximum(steps - stages, 0), steps, wait_until_free, None)

    shared = functools.partial(tiles.shared_tiles, dtype=query.dtype)
    state = jax.ShapeDtypeStruct((batch, heads, key.shape[1] // keys, length), jnp.float32)
    return plgpu.kernel(
        body,
        out_type=(jax.ShapeDtypeStruct(query.shape, jnp.float32), state, state),
        scratch_types=(
            shared(COMPUTE_GROUPS, ROWS_PER_GROUP, width),
            shared(COMPUTE_GROUPS, ROWS_PER_GROUP, width),
            shared(stages, keys, width),
            shared(stages, keys, width),
            plgpu.Barrier(num_barriers=COMPUTE_GROUPS),
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
    )(query, key, value, d_output, total, bound, counts, offset, *ids)
