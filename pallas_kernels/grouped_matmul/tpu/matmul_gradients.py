"""All gradients of the grouped product in one pass, for matrices that stay in VMEM."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.grouped_matmul.tpu.block_sizes import BlockSizes, vmem_limit
from pallas_kernels.grouped_matmul.tpu.expert_sums import ExpertSums, Sums, joined
from pallas_kernels.grouped_matmul.tpu.matmul import (
    Chunks,
    as_column,
    dot,
    fold_lanes,
    own_lanes,
    row_blocks,
    row_sums,
    vector_block,
)
from pallas_kernels.grouped_matmul.tpu.rows import LANES, padded_width, round_up, store_columns
from pallas_kernels.grouped_matmul.tpu.tiles import Block, Rows, WorkItem, tile_call
from pallas_kernels.grouped_matmul.tpu.weight_stationary import (
    Footprint,
    expert_block,
    pipelined,
    rows_result,
)
from pallas_kernels.grouped_matmul.tpu.work_list import WorkList


def footprint(weights: Array, itemsize: int, height: int) -> Footprint:
    """VMEM that `matmul_gradients` needs; `itemsize` is that of the wider of `x` and `dy`."""
    _, depth, width = weights.shape
    elements = round_up(depth, 16) * round_up(width, LANES)
    matrix = elements * weights.dtype.itemsize
    rows = padded_width(depth), padded_width(width)
    tiles = height * (rows[0] * (8 * itemsize + 8) + rows[1] * (5 * itemsize + 4))
    return Footprint(matrix, matrix + 4 * elements, tiles)


def matmul_gradients(
    work: WorkList,
    x: Rows,
    dy: Rows,
    weights: Array,
    *,
    num_rows: int,
    buffers: int,
    sizes: BlockSizes,
    as_rows: bool,
    scale: Array | None,
    with_sums: bool,
    precision: jax.lax.Precision,
) -> tuple[Array, Array, Array | None, Array | None]:
    """The gradients of inputs, weights, gates and bias.

    Args:
        work: the work list, for every expert.
        x: inputs [R, K].
        dy: gradients of the outputs [R, N], before the gates.
        weights: [E, K, N].
        num_rows: R.
        buffers: that the matrix gets.
        sizes: of blocks.
        as_rows: whether the gradients of the inputs are for fetching rows from.
        scale: float32 [R], the gates; None for ones, and no gradient.
        with_sums: also sum dy times scale over each expert's rows.
        precision: of the products.

    Returns:
        The gradients of the inputs, packed or [R, K], of the weights, of the gates, float32
        [R], and of the bias, float32 [E, N]. Rows in no item of the list hold anything.
    """
    experts, depth, width = weights.shape
    height, dtype = work.height, x.dtype
    chunks = Chunks.of(width, sizes, height, depth)
    results: list[tuple[jax.ShapeDtypeStruct, Block | None]] = [
        rows_result(num_rows, depth, height, dtype)
        if as_rows
        else (
            jax.ShapeDtypeStruct((num_rows, depth), dtype),
            Block((height, depth), lambda n, e, t: (t, 0)),
        ),
    ]
    if scale is not None:
        per_row = jax.ShapeDtypeStruct((work.tiles, 1, height), jnp.float32)
        results.append((per_row, vector_block(height)))
    specs = [ExpertSums(experts, (depth, width), weights.dtype, work.cores)]
    if with_sums:
        specs.append(ExpertSums(experts, (1, width), jnp.float32, work.cores))
    own_results = len(results)

    def body(
        item: WorkItem, tiles: Any, block_refs: Any, outs: Any, scratch_refs: Any, prepare: Any
    ) -> None:
        outs, parts = outs[:own_results], outs[own_results:]
        sums = [Sums.of(spec, item, parts, scratch_refs) for spec in specs]
        transposed, scaled, dx = scratch_refs
        own, routed = item.own(), item.expert < experts
        for kept_sum in sums:
            kept_sum.open()
        kept = jnp.where(own, tiles[0][...], jnp.zeros_like(tiles[0]))
        transposed[...] = kept.T
        dx[...] = jnp.zeros_like(dx)
        factor = None if scale is None else as_column(block_refs[1][...])[:, :1]

        def make(at: Any) -> None:
            raw = tiles[1][:, at]
            product = raw if factor is None else raw.astype(jnp.float32) * factor
            product = jnp.where(own, product, jnp.zeros_like(product))
            if with_sums:
                sums[1].total[:, at] += jnp.sum(product.astype(jnp.float32), axis=0, keepdims=True)
            scaled[...] = product.astype(scaled.dtype)

        def use(at: Any) -> None:
            # First what the end of the item waits for, so that it runs beside the others.
            dx[:, :depth] += dot(tiles[1][:, at], block_refs[0][:, at], (1, 1), precision)
            sums[0].total[:, at] += dot(transposed[...], scaled[...], (1, 0), precision)

        pipelined(chunks, prepare, make, use)
        rows = dx[:, :depth]
        if factor is not None:
            products = fold_lanes(rows * kept.astype(jnp.float32))
            gates = row_sums(products)
            outs[-1][...] = jnp.where(own_lanes(item), gates, outs[-1][...])
            rows = rows * factor
        if as_rows:
            dx[:, :depth] = rows
            store_columns(outs[0], dx, dtype, own)
        else:
            rows = jnp.where(routed, rows, 0).astype(dtype)
            outs[0][...] = jnp.where(own, rows, outs[0][...])
        for done in sums:
            done.stage()
        for done in sums:
            done.copy()

    blocks = [(weights, expert_block(weights, buffers))]
    if scale is not None:
        blocks.append((row_blocks(scale, height), vector_block(height)))
    outputs = tile_call(
        body,
        work,
        name="grouped_matmul_resident_gradients",
        columns=1,
        rows=[x, dy],
        blocks=blocks,
        results=[*results, *(result for spec in specs for result in spec.results)],
        scratch=[
            *(ref for spec in specs for ref in spec.scratch),
            pltpu.VMEM((depth, height), dtype),
            pltpu.VMEM((height, chunks.size), dy.dtype),
            pltpu.VMEM((height, padded_width(depth)), jnp.float32),
        ],
        parts=chunks.parts,
        vmem_limit=vmem_limit(),
        cost=pl.CostEstimate(
            flops=4 * num_rows * depth * width,
            bytes_accessed=2 * weights.size * weights.dtype.itemsize
            + num_rows * (2 * depth + width) * dtype.itemsize,
            transcendentals=0,
        ),
    )
    dgates = None if scale is None else outputs[1].reshape(-1)[:num_rows]
    dx, (dweights, *dbias) = joined(specs, outputs[own_results:], work, outputs[0])
    return dx, dweights, dgates, dbias[0][:, 0] if dbias else None
