"""The hidden layer's gradients, for banks that are too large to stay in VMEM."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.grouped_matmul.hidden_layer import Activation, hidden_layer
from pallas_kernels.grouped_matmul.tpu.block_sizes import BlockSizes, vmem_limit
from pallas_kernels.grouped_matmul.tpu.matmul import (
    Chunks,
    Piece,
    Product,
    as_column,
    bank_budget,
    fit_columns,
    fold_lanes,
    own_lanes,
    row_blocks,
    row_sums,
    vector_block,
)
from pallas_kernels.grouped_matmul.tpu.rows import LANES, ROW_MULTIPLE
from pallas_kernels.grouped_matmul.tpu.tiles import Block, Rows, WorkItem, tile_call
from pallas_kernels.grouped_matmul.tpu.work_list import WorkList

Arrays = tuple[Array, ...]


def hidden_pieces(width: int) -> list[Piece]:
    """About four pieces of a hidden layer's columns, for which it is there one after the other.

    Their widths are powers of two times 1024, so that wide blocks divide them, but that of the
    last. Layers of fewer than four times 1024 columns stay whole, and those that are no multiple.
    """
    units = width // ROW_MULTIPLE
    if units < 4 or width % ROW_MULTIPLE:
        return [Piece(0, width, width)]
    size = ROW_MULTIPLE << (-(-units // 4) - 1).bit_length()
    return [Piece(i, min(size, width - i), width) for i in range(0, width, size)]


def hidden_gradients(
    pre: Sequence[Array], dhidden: Array, gate: Array, activation: Activation
) -> tuple[Array, Array, Arrays]:
    """Gradients that follow from a tile of the hidden layer.

    Args:
        pre: float32 [M, C] each, (up,) or (up, gate).
        dhidden: float32 [M, C], the gradient of the outputs times `down` transposed.
        gate: float32 [M, 1], of the rows.
        activation: see `hidden_layer`.

    Returns:
        The hidden layer times the gates, the terms of the gates' gradients, and the gradients of
        the pre-activations.
    """
    hidden, pull = jax.vjp(lambda *p: hidden_layer(p, activation), *pre)
    return hidden * gate, hidden * dhidden, pull(dhidden * gate)


def hidden_layer_gradients(
    work: WorkList,
    x: Rows,
    dy: Rows,
    banks: Arrays,
    gates: Array,
    *,
    num_rows: int,
    sizes: BlockSizes,
    activation: Activation,
    precision: jax.lax.Precision,
    piece: Piece,
    into: Arrays | None,
) -> tuple[Array, Arrays, Array]:
    """Computes columns of the hidden layer again, and what the gradients of all banks need of it.

    Args:
        work: the work list.
        x: inputs.
        dy: gradients of the outputs, before the gates.
        banks: (down, up[, gate]).
        gates: float32 [R].
        num_rows: R.
        sizes: of blocks.
        activation: of the hidden layer.
        precision: of the products.
        piece: which columns.
        into: what earlier pieces gave of the gradients of the pre-activations.

    Returns:
        The piece of the gated hidden layer, [R, columns]; the gradients of the pre-activations with
        this piece, [R or more, F] each; and what it adds to those of the gates, float32 [R]. Rows
        in no item of the list hold anything.
    """
    products = [Product(0, bank, columns=piece) for bank in banks[1:]]
    products.append(Product(1, banks[0], transposed=True, columns=piece))
    width, height, dtype = piece.width, work.height, x.dtype
    most = min(sizes.columns, piece.most)
    block, buffers = fit_columns(products, most, bank_budget(), narrow=True)
    before = piece.at(block)
    count = -(-width // block)
    ragged = count * block != width
    chunks = Chunks.of(block, sizes, height, sum(p.depth for p in products))
    lanes = LANES if chunks.size % LANES == 0 else chunks.size
    hidden_shape = jax.ShapeDtypeStruct((num_rows, width), dtype)
    # Whole tiles: the interpreter does not fill up what is passed on from piece to piece.
    dpre_shape = jax.ShapeDtypeStruct((work.tiles * height, piece.total), dtype)
    per_row = jax.ShapeDtypeStruct((count, work.tiles, 1, height), jnp.float32)

    def body(
        item: WorkItem, tiles: Any, block_refs: Any, outs: Any, scratch_refs: Any, prepare: Any
    ) -> None:
        own = item.own()
        factor = as_column(block_refs[-1][...])[:, :1]
        (sums,) = scratch_refs
        sums[...] = jnp.zeros_like(sums)

        def compute(at: Any) -> None:
            *pre, dhidden = (
                p.chunk(tiles[p.source][...], bank, at, precision)
                for p, bank in zip(products, block_refs[:-1], strict=True)
            )
            hidden, terms, dpre = hidden_gradients(pre, dhidden, factor, activation)
            if ragged:  # the last block reaches beyond what there is
                column = jax.lax.broadcasted_iota(jnp.int32, (1, at.size), 1) + at.start
                terms = jnp.where(item.column * block + column < width, terms, 0)
            sums[...] += fold_lanes(terms)
            for out, value in zip(outs, (hidden, *dpre), strict=False):
                out[:, at] = jnp.where(own, value.astype(dtype), out[:, at])

        chunks.run(prepare, compute)
        outs[-1][...] = jnp.where(own_lanes(item), row_sums(sums[...]), outs[-1][...])

    here: Callable[..., Any] = lambda n, e, t: (t, n)  # noqa: E731
    there: Callable[..., Any] = lambda n, e, t: (t, before + n)  # noqa: E731
    results = tile_call(
        body,
        work,
        name="grouped_feed_forward_hidden_gradients",
        columns=count,
        rows=[x, dy],
        blocks=[
            *((p.bank, p.block(block, buffers)) for p in products),
            (row_blocks(gates, height), vector_block(height)),
        ],
        results=[
            (hidden_shape, Block((height, block), here)),
            *[(dpre_shape, Block((height, block), there))] * (len(banks) - 1),
            (per_row, Block((None, None, 1, height), lambda n, e, t: (n, t, 0, 0))),
        ],
        into=() if into is None else (None, *into),
        scratch=[pltpu.VMEM((height, lanes), jnp.float32)],
        parts=chunks.parts,
        vmem_limit=vmem_limit(),
        cost=pl.CostEstimate(
            flops=2 * num_rows * sum(p.depth for p in products) * width,
            bytes_accessed=sum(b.size * b.dtype.itemsize for b in banks) * width // piece.total
            + num_rows * (x.width + dy.width + len(banks) * width) * dtype.itemsize,
            transcendentals=num_rows * width,
        ),
    )
    hidden, *dpre, partial = results
    dgates = jnp.sum(partial, axis=0).reshape(-1)[:num_rows]
    return hidden, tuple(dpre), dgates
