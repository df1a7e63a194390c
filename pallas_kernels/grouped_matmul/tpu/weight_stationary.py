"""Feed-forward experts whose matrices stay in VMEM while all of an expert's rows pass.

One kernel then does a whole pass: hidden layers never reach HBM, rows are fetched once, and every
expert's matrices are read once. The inner loop runs over chunks of the hidden layer. An iteration
multiplies what the one before made, so that the matrix units have work while the activation of its
own chunk is computed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.typing import DTypeLike

from pallas_kernels.grouped_matmul.hidden_layer import Activation, hidden_layer
from pallas_kernels.grouped_matmul.tpu.block_sizes import BlockSizes, vmem_limit
from pallas_kernels.grouped_matmul.tpu.expert_sums import ExpertSums, Sums, joined
from pallas_kernels.grouped_matmul.tpu.feed_forward import hidden_gradients
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
from pallas_kernels.grouped_matmul.tpu.rows import (
    LANES,
    packed_dtype,
    packed_shape,
    padded_width,
    round_up,
    store_columns,
)
from pallas_kernels.grouped_matmul.tpu.tiles import Block, Rows, WorkItem, tile_call
from pallas_kernels.grouped_matmul.tpu.work_list import WorkList

Arrays = tuple[Array, ...]


@dataclasses.dataclass(frozen=True)
class Footprint:
    """VMEM that a pass needs, in bytes.

    Attributes:
        banks: one expert's matrices.
        sums: the sums of their gradients and what is copied out; 0 for the forward pass.
        tiles: everything that grows with the height of a tile.
    """

    banks: int
    sums: int
    tiles: int

    @classmethod
    def of(
        cls, banks: Arrays, width: int, dtype: DTypeLike, height: int, chunk: int, *, backward: bool
    ) -> Footprint:
        """Computes it for `banks` (down, up[, gate]) and inputs of `width` columns."""
        size = jnp.dtype(dtype).itemsize
        elements = [round_up(b.shape[1], 16) * round_up(b.shape[2], LANES) for b in banks]
        matrices = sum(n * b.dtype.itemsize for n, b in zip(elements, banks, strict=True))
        row = padded_width(width)
        if not backward:
            # Fetched and flat tiles, the results; the float32 sum; a chunk and its products.
            return cls(matrices, 0, height * (row * (6 * size + 4) + chunk * 16))
        return cls(
            matrices,
            matrices + 4 * sum(elements),
            height * (row * (12 * size + 8) + chunk * 16 * len(banks)),
        )

    def buffers(self, budget: int) -> int | None:
        """The number of buffers that the matrices can have, or None if they do not fit."""
        for count in (2, 1):
            if count * self.banks + self.sums + self.tiles <= budget:
                return count
        return None


def expert_block(bank: Array, buffers: int) -> Block:
    """One expert's whole matrix."""
    last = bank.shape[0] - 1
    return Block((None, *bank.shape[1:]), lambda n, e, t: (jnp.minimum(e, last), 0, 0), buffers)


def rows_result(
    num_rows: int, width: int, height: int, dtype: DTypeLike
) -> tuple[jax.ShapeDtypeStruct, Block]:
    """Shape and block of results that rows are fetched from."""
    shape = packed_shape(num_rows, width, dtype)
    block = Block((shape[0], height, LANES), lambda n, e, t: (0, t, 0))
    return jax.ShapeDtypeStruct(shape, packed_dtype(dtype)), block


def pipelined(
    chunks: Chunks,
    prepare: Callable[[Any], None],
    make: Callable[[Any], None],
    use: Callable[[Any], None],
) -> None:
    """Runs `make`, then `use`, for each chunk; in the loop, one use beside the next making."""
    make(chunks.at(0))
    # It writes a buffer that the first products read: before them, they would wait for it.
    prepare(0 if chunks.parts == 1 else chunks.iterations - 1)

    def compute(c: Any) -> None:
        if chunks.parts > 1:
            prepare(c - 1)
        use(chunks.at(c - 1))
        make(chunks.at(c))

    chunks.loop(1, compute)
    use(chunks.at(chunks.iterations - 1))


def feed_forward(
    work: WorkList,
    x: Rows,
    banks: Arrays,
    *,
    num_rows: int,
    buffers: int,
    sizes: BlockSizes,
    activation: Activation,
    precision: jax.lax.Precision,
) -> Array:
    """The experts' outputs as packed grouped rows, for fetching rows from.

    Args:
        work: the work list.
        x: inputs.
        banks: (down, up[, gate]).
        num_rows: R.
        buffers: that each matrix gets.
        sizes: of blocks.
        activation: of the hidden layer.
        precision: of the products.
    """
    hidden_width, width = banks[0].shape[1:]
    height, dtype = work.height, x.dtype
    chunks = Chunks.of(hidden_width, sizes, height, width)

    def body(
        item: WorkItem, tiles: Any, bank_refs: Any, outs: Any, scratch_refs: Any, prepare: Any
    ) -> None:
        down, *ups = bank_refs
        hidden, total = scratch_refs
        total[...] = jnp.zeros_like(total)

        def make(at: Any) -> None:
            pre = [dot(tiles[0][...], up[:, at], (1, 0), precision) for up in ups]
            hidden[...] = hidden_layer(tuple(pre), activation).astype(dtype)

        def use(at: Any) -> None:
            total[:, :width] += dot(hidden[...], down[at, :], (1, 0), precision)

        pipelined(chunks, prepare, make, use)
        store_columns(outs[0], total, dtype, item.own())

    return tile_call(
        body,
        work,
        name="grouped_feed_forward_resident",
        columns=1,
        rows=[x],
        blocks=[(bank, expert_block(bank, buffers)) for bank in banks],
        results=[rows_result(num_rows, width, height, dtype)],
        scratch=[
            pltpu.VMEM((height, chunks.size), dtype),
            pltpu.VMEM((height, padded_width(width)), jnp.float32),
        ],
        parts=chunks.parts,
        vmem_limit=vmem_limit(),
        cost=pl.CostEstimate(
            flops=2 * num_rows * width * hidden_width * len(banks),
            bytes_accessed=sum(b.size * b.dtype.itemsize for b in banks)
            + 2 * num_rows * width * dtype.itemsize,
            transcendentals=num_rows * hidden_width,
        ),
    )[0]


def feed_forward_gradients(
    work: WorkList,
    x: Rows,
    dy: Rows,
    banks: Arrays,
    gates: Array,
    *,
    num_rows: int,
    buffers: int,
    sizes: BlockSizes,
    activation: Activation,
    precision: jax.lax.Precision,
) -> tuple[Array, Arrays, Array]:
    """All gradients in one pass, computing the hidden layer again.

    Args:
        work: the work list, for every expert.
        x: inputs.
        dy: gradients of the outputs, before the gates.
        banks: (down, up[, gate]).
        gates: float32 [R].
        num_rows: R.
        buffers: that each matrix gets.
        sizes: of blocks.
        activation: of the hidden layer.
        precision: of the products.

    Returns:
        The gradients of the inputs as packed grouped rows, those of the banks, and those of the
        gates, float32 [R]. Rows in no item of the list hold anything.
    """
    hidden_width, width = banks[0].shape[1:]
    height, dtype = work.height, x.dtype
    chunks = Chunks.of(hidden_width, sizes, height, width)
    lanes = LANES if chunks.size % LANES == 0 else chunks.size
    count = len(banks)
    specs = [ExpertSums(b.shape[0], b.shape[1:], b.dtype, work.cores) for b in banks]

    def body(
        item: WorkItem, tiles: Any, block_refs: Any, outs: Any, scratch_refs: Any, prepare: Any
    ) -> None:
        down, *ups = block_refs[:count]
        factor = as_column(block_refs[count][...])[:, :1]
        dx, dgates, *rest = outs
        sums = [Sums.of(spec, item, rest, scratch_refs) for spec in specs]
        x_own, x_transposed, dy_own, terms, total, hidden, *dpre = scratch_refs
        own = item.own()
        for kept in sums:
            kept.open()
        # Rows of other experts must not reach the sums over rows, whatever they hold.
        for tile, kept in ((tiles[0], x_own), (tiles[1], dy_own)):
            kept[...] = jnp.where(own, tile[...], jnp.zeros_like(tile))
        x_transposed[...] = x_own[...].T
        total[...] = jnp.zeros_like(total)
        terms[...] = jnp.zeros_like(terms)

        def make(at: Any) -> None:
            pre = [dot(x_own[...], up[:, at], (1, 0), precision) for up in ups]
            dhidden = dot(dy_own[...], down[at, :], (1, 1), precision)
            value, products, gradients = hidden_gradients(pre, dhidden, factor, activation)
            terms[...] += fold_lanes(products)
            for ref, new in zip((hidden, *dpre), (value, *gradients), strict=True):
                ref[...] = jnp.where(own, new, 0).astype(dtype)

        def use(at: Any) -> None:
            # First what the end of the item waits for, so that it runs beside the others.
            parts = [
                dot(d[...], up[:, at], (1, 1), precision) for d, up in zip(dpre, ups, strict=True)
            ]
            total[:, :width] += sum(parts[1:], parts[0])
            sums[0].total[at, :] += dot(hidden[...], dy_own[...], (0, 0), precision)
            for d, dup in zip(dpre, sums[1:], strict=True):
                dup.total[:, at] += dot(x_transposed[...], d[...], (1, 0), precision)

        pipelined(chunks, prepare, make, use)
        store_columns(dx, total, dtype, own)
        dgates[...] = jnp.where(own_lanes(item), row_sums(terms[...]), dgates[...])
        for done in sums:
            done.stage()
        for done in sums:
            done.copy()

    dx, dgates, *parts = tile_call(
        body,
        work,
        name="grouped_feed_forward_resident_gradients",
        columns=1,
        rows=[x, dy],
        blocks=[
            *((bank, expert_block(bank, buffers)) for bank in banks),
            (row_blocks(gates, height), vector_block(height)),
        ],
        results=[
            rows_result(num_rows, width, height, dtype),
            (
                jax.ShapeDtypeStruct((work.tiles, 1, height), jnp.float32),
                vector_block(height),
            ),
            *(result for spec in specs for result in spec.results),
        ],
        scratch=[
            *(ref for spec in specs for ref in spec.scratch),
            pltpu.VMEM((height, width), dtype),
            pltpu.VMEM((width, height), dtype),
            pltpu.VMEM((height, width), dtype),
            pltpu.VMEM((height, lanes), jnp.float32),
            pltpu.VMEM((height, padded_width(width)), jnp.float32),
            *(pltpu.VMEM((height, chunks.size), dtype) for _ in banks),
        ],
        parts=chunks.parts,
        vmem_limit=vmem_limit(),
        cost=pl.CostEstimate(
            flops=2 * num_rows * width * hidden_width * (3 * count - 1),
            bytes_accessed=sum(2 * b.size * b.dtype.itemsize for b in banks)
            + 3 * num_rows * width * dtype.itemsize,
            transcendentals=num_rows * hidden_width,
        ),
    )
    dx, dbanks = joined(specs, parts, work, dx)
    return dx, tuple(dbanks), dgates.reshape(-1)[:num_rows]
