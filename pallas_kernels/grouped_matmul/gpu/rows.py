"""The kernel that multiplies rows by their experts' weights.

A persistent grid of one block a multiprocessor walks over the output tiles. In a block, a producer
warpgroup fills a ring of shared memory buffers, rows by index (`gpu_row_reader`) and weights by
TMA, and two consumer warpgroups multiply them with `wgmma`, 64 rows each. The ring runs on across
tiles, so that a tile's operands are on their way while the last one's results are written. Results
are staged in shared memory and written row by row with bulk copies, of exactly the rows and columns
that there are.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.experimental.pallas as pl
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from pallas_kernels.grouped_matmul.gpu.block_sizes import (
    CONSUMER_REGISTERS,
    CONSUMER_ROWS,
    CONSUMERS,
    PRODUCER_REGISTERS,
    STAGING_PADDING,
    Blocks,
)
from pallas_kernels.grouped_matmul.gpu.row_reader import (
    RowReader,
    by_warps,
    commit_reads,
    interpreted,
    tile_transforms,
    wait_for_reads,
)
from pallas_kernels.grouped_matmul.gpu.tiles import COUNT, END, EXPERT, START, in_bands

Ref = Any
# Given the accumulators, the tiles of the arrays beside, and the factors of the rows (all float32,
# of one shape), returns the outputs, and what is to be summed up over the columns (or None).
Epilogue = Callable[
    [tuple[Array, ...], tuple[Array, ...], Array | None], tuple[tuple[Array, ...], Array | None]
]
# One product of a sum: which array of rows, and for each accumulator which array of weights.
Term = tuple[int, tuple[int, ...]]


@dataclasses.dataclass(frozen=True)
class RowProducts:
    """Settings of `multiply_rows`, apart from the arrays.

    Attributes:
        blocks: the block sizes.
        num_rows: R, of the outputs.
        terms: products to add up; all have the same accumulators.
        transposed: whether weights are [E, N, C] and not [E, C, N].
        outputs: how many the epilogue returns.
        output_dtype: of all outputs.
        epilogue: elementwise; called for a few columns of a tile at a time.
        multiprocessors: blocks of the grid.
        zero_rest: whether the rows of tiles of expert E are written as zeros.
        sums: whether the epilogue returns something to be summed up.
        padding: rows of the outputs beyond R, which hold anything.
    """

    blocks: Blocks
    num_rows: int
    terms: tuple[Term, ...]
    transposed: bool
    outputs: int
    output_dtype: DTypeLike
    epilogue: Epilogue
    multiprocessors: int
    zero_rest: bool = False
    sums: bool = False
    padding: int = 0


def multiply_rows(
    settings: RowProducts,
    rows: tuple[Array, ...],
    weights: tuple[Array, ...],
    tiles: Array,
    *,
    row_index: Array | None = None,
    bias: Array | None = None,
    output_index: Array | None = None,
    beside: tuple[Array, ...] = (),
    factor: Array | None = None,
) -> tuple[tuple[Array, ...], Array | None]:
    """Multiplies rows by the weights of their expert.

    Args:
        settings: the rest of the problem.
        rows: arrays [S, C] of a dtype two bytes wide.
        weights: arrays [E, C, N] or, transposed, [E, N, C] of the same dtype. C and N are multiples
            of 64, what a TMA box is made of.
        tiles: the table of `tiles.row_tiles`, for the height of the blocks.
        row_index: int32 [R], the row of `rows` for each grouped row; None if they are the same.
        bias: float32 [E, at least N rounded up to the width of a block], added to the only
            accumulator.
        output_index: int32 [R], the row of the outputs for each grouped row; None if they are the
            same.
        beside: arrays [at least R + 127, N] for the epilogue, by grouped row. With them, N is a
            multiple of the columns of a block.
        factor: float32 [at least R + 127] for the epilogue, one for each grouped row.

    Returns:
        The outputs [R + padding, N]; rows that no tile has are left as they were in memory. And, if
        the epilogue has something to be summed up, its sums over the columns of a block, float32
        [tiles, column blocks, rows of a block], or else None.
    """
    blocks, depth = settings.blocks, weights[0].shape[2 if settings.transposed else 1]
    columns = weights[0].shape[1 if settings.transposed else 2]
    dtype = rows[0].dtype
    transforms = tile_transforms(dtype)
    banks, staged = len(settings.terms[0][1]), blocks.staged_columns
    weight_block = (
        (blocks.columns, blocks.depth) if settings.transposed else (blocks.depth, blocks.columns)
    )
    optional = {
        "row_index": row_index,
        "bias": bias,
        "output_index": output_index,
        "factor": factor,
    }
    given = {name: array for name, array in optional.items() if array is not None}

    def body(*refs: Ref) -> None:
        remaining = list(refs)

        def take(count: int) -> list[Ref]:
            taken = remaining[:count]
            del remaining[:count]
            return taken

        (tile_table,) = take(1)
        kernel = _Kernel(
            settings,
            depth=depth,
            columns=columns,
            tiles=tile_table,
            rows=take(len(rows)),
            weights=take(len(weights)),
            beside=take(len(beside)),
            **(dict.fromkeys(optional) | dict(zip(given, take(len(given)), strict=True))),
            outputs=take(settings.outputs),
            sums=take(1)[0] if settings.sums else None,
            **dict(zip(_SCRATCH, remaining, strict=True)),
        )
        is_consumer = jax.lax.axis_index("warpgroup") < CONSUMERS
        pl.when(is_consumer)(kernel.consume)
        pl.when(jnp.logical_not(is_consumer))(kernel.produce)

    shape = (settings.num_rows + settings.padding, columns)
    results = [jax.ShapeDtypeStruct(shape, settings.output_dtype)] * settings.outputs
    if settings.sums:
        column_blocks = pl.cdiv(columns, blocks.columns)
        sums_shape = (tiles.shape[1], column_blocks, blocks.rows)
        results.append(jax.ShapeDtypeStruct(sums_shape, jnp.float32))
    kernel = plgpu.kernel(
        body,
        out_type=tuple(results),
        grid=(settings.multiprocessors,),
        grid_names=("block",),
        num_threads=CONSUMERS + 1,
        thread_name="warpgroup",
        scratch_types=[
            plgpu.SMEM((blocks.stages, blocks.rows, blocks.depth), dtype, transforms=transforms),
            plgpu.SMEM((blocks.stages, banks, *weight_block), dtype, transforms=transforms),
            plgpu.SMEM(
                (CONSUMERS, blocks.staging_buffers, CONSUMER_ROWS, staged + STAGING_PADDING),
                settings.output_dtype,
            ),
            plgpu.Barrier(num_arrivals=1 + banks, num_barriers=blocks.stages),
            plgpu.Barrier(num_arrivals=CONSUMERS, num_barriers=blocks.stages),
        ],
        compiler_params=plgpu.CompilerParams(lowering_semantics=plgpu.LoweringSemantics.Lane),
    )
    outputs: tuple[Array, ...] = kernel(tiles, *rows, *weights, *beside, *given.values())
    return tuple(outputs[: settings.outputs]), outputs[-1] if settings.sums else None


_SCRATCH = ("row_ring", "weight_ring", "staging", "full", "empty")


@dataclasses.dataclass(frozen=True)
class _Kernel:
    """The kernel's body, with its references."""

    settings: RowProducts
    depth: int
    columns: int
    tiles: Ref
    rows: list[Ref]
    weights: list[Ref]
    row_index: Ref | None
    bias: Ref | None
    output_index: Ref | None
    factor: Ref | None
    beside: list[Ref]
    outputs: list[Ref]
    sums: Ref | None
    row_ring: Ref
    weight_ring: Ref
    staging: Ref
    full: Ref
    empty: Ref

    @property
    def _blocks(self) -> Blocks:
        return self.settings.blocks

    @property
    def _steps(self) -> int:
        """Steps of one term."""
        return pl.cdiv(self.depth, self._blocks.depth)

    @property
    def _column_tiles(self) -> int:
        return pl.cdiv(self.columns, self._blocks.columns)

    def _stage(self, step: Array) -> Array:
        return jax.lax.rem(step, jnp.int32(self._blocks.stages))

    def _for_each_tile(self, compute: Callable[[Array, Array, Array], Array]) -> Array:
        """Calls `compute(row tile, column tile, steps done)` for each of the block's tiles."""
        row_tiles = self.tiles[COUNT, 0]
        first, stride = jax.lax.axis_index("block"), self.settings.multiprocessors
        total = row_tiles * self._column_tiles

        def one(i: Array, done: Array) -> Array:
            tile = first + i * stride
            row, column = in_bands(tile, row_tiles, self._column_tiles, self._blocks.band)
            return compute(row, column, done)

        count = jax.lax.div(total - first + stride - 1, jnp.int32(stride))
        return jax.lax.fori_loop(0, count, one, jnp.int32(0))

    def _expert(self, tile: Array) -> Array:
        """Of a tile; any one for tiles without."""
        expert = self.tiles[EXPERT, tile]
        if not self.settings.zero_rest:
            return expert
        return jnp.minimum(expert, self.weights[0].shape[0] - 1)

    # ------------------------------------------------------------------------------- producer

    def produce(self) -> None:
        """Fills the ring."""
        plgpu.set_max_registers(PRODUCER_REGISTERS, action="decrease")
        blocks = self._blocks
        reader = RowReader(blocks.rows, blocks.depth, self.depth, self.rows[0].dtype)

        def compute(tile: Array, column: Array, done: Array) -> Array:
            expert = self._expert(tile)
            start, end = self.tiles[START, tile], self.tiles[END, tile]
            indices = reader.row_indices(self.row_index, start, end)
            for row_array, weight_arrays in self.settings.terms:

                def fill(
                    k: Array, done: Array, source: int = row_array, banks: Any = weight_arrays
                ) -> Array:
                    stage = self._stage(done)
                    plgpu.barrier_wait(self.empty.at[stage])
                    for bank, weight in enumerate(banks):
                        self._copy_weights(weight, bank, expert, k, column, stage)
                    reader.read(
                        self.rows[source], self.row_ring.at[stage], indices, k * blocks.depth
                    )
                    commit_reads()
                    wait_for_reads(blocks.reads_in_flight)

                    @pl.when(done >= blocks.reads_in_flight)
                    def _arrived() -> None:
                        plgpu.barrier_arrive(
                            self.full.at[self._stage(done - blocks.reads_in_flight)]
                        )

                    return done + 1

                done = jax.lax.fori_loop(0, self._steps, fill, done)
            return done

        done = self._for_each_tile(compute)
        wait_for_reads(0)

        def arrive(step: Array, _: None) -> None:
            plgpu.barrier_arrive(self.full.at[self._stage(step)])

        jax.lax.fori_loop(jnp.maximum(done - blocks.reads_in_flight, 0), done, arrive, None)
        # Every release is waited for, also the last ones: no barrier is left in mid-phase.
        for stage in range(blocks.stages):
            plgpu.barrier_wait(self.empty.at[stage])

    def _copy_weights(
        self, weight: int, bank: int, expert: Array, k: Array, column: Array, stage: Array
    ) -> None:
        """TMA fills with zeros what lies beyond the weights of the expert."""
        blocks = self._blocks
        contracted = pl.ds(k * blocks.depth, blocks.depth)
        others = pl.ds(column * blocks.columns, blocks.columns)
        box = (others, contracted) if self.settings.transposed else (contracted, others)
        plgpu.copy_gmem_to_smem(
            self.weights[weight].at[(expert, *box)],
            self.weight_ring.at[stage, bank],
            self.full.at[stage],
        )

    # ------------------------------------------------------------------------------ consumers

    def consume(self) -> None:
        """Multiplies what is in the ring, and writes the tiles."""
        plgpu.set_max_registers(CONSUMER_REGISTERS, action="increase")
        blocks = self._blocks
        for stage in range(blocks.stages):
            plgpu.barrier_arrive(self.empty.at[stage])
        own = jax.lax.axis_index("warpgroup") * CONSUMER_ROWS
        banks = len(self.settings.terms[0][1])
        tile_steps = self._steps * len(self.settings.terms)

        def compute(tile: Array, column: Array, done: Array) -> Array:
            def multiply(*accumulators: Ref) -> tuple[Array, ...]:
                def step(k: Array, _: None) -> None:
                    stage = self._stage(done + k)
                    plgpu.barrier_wait(self.full.at[stage])
                    for bank, accumulator in enumerate(accumulators):
                        weights = self.weight_ring.at[stage, bank]
                        plgpu.wgmma(
                            accumulator,
                            self.row_ring.at[stage, pl.ds(own, CONSUMER_ROWS)],
                            weights.T if self.settings.transposed else weights,
                        )
                    # The products of the last step are done, those of this one may be under way.
                    plgpu.wgmma_wait(banks)

                    @pl.when(k > 0)
                    def _release() -> None:
                        plgpu.barrier_arrive(self.empty.at[self._stage(done + k - 1)])

                jax.lax.fori_loop(0, tile_steps, step, None)
                return tuple(accumulator[...] for accumulator in accumulators)

            shape = (CONSUMER_ROWS, blocks.columns)
            sums = pl.run_scoped(multiply, *[plgpu.ACC(shape, jnp.float32) for _ in range(banks)])
            done = done + tile_steps
            plgpu.barrier_arrive(self.empty.at[self._stage(done - 1)])
            if self.bias is not None:
                sums = (sums[0] + self._bias(tile, column, shape),)
            self._write_tile(sums, tile, column, own)
            return done

        self._for_each_tile(compute)
        by_warps(lambda _: plgpu.wait_smem_to_gmem(0))

    def _bias(self, tile: Array, column: Array, shape: tuple[int, int]) -> Array:
        assert self.bias is not None
        columns = pl.ds(column * self._blocks.columns, self._blocks.columns)
        row = plgpu.load(
            self.bias.at[self._expert(tile), columns],
            layout=plgpu.Layout.WGMMA.reduce(0),
            optimized=False,
        )
        return jax.lax.broadcast_in_dim(row, shape, (1,))

    def _write_tile(self, sums: tuple[Array, ...], tile: Array, column: Array, own: Array) -> None:
        """Runs the epilogue on a few columns at a time, and writes what it returns."""
        blocks, total = self._blocks, None
        start = self.tiles[START, tile] + own
        named = self.tiles[EXPERT, tile] < self.weights[0].shape[0]
        warpgroup = jax.lax.axis_index("warpgroup")
        for piece in range(blocks.columns // blocks.staged_columns):
            # A buffer of several is filled while the last one is copied out; where each output has
            # one, all must have been. What the last tile left under way is done by now.
            in_flight = min(piece, 1) if len(self.outputs) == 1 and not interpreted() else 0
            by_warps(functools.partial(_wait_for_copies, in_flight))
            first_buffer = piece % 2 if len(self.outputs) == 1 else 0
            first = piece * blocks.staged_columns
            for offset in range(0, blocks.staged_columns, blocks.epilogue_columns):
                outputs, summands = self._epilogue(sums, start, column, first + offset)
                for i, y in enumerate(outputs):
                    if self.settings.zero_rest:
                        y = jnp.where(named, y, jnp.zeros_like(y))
                    columns = pl.ds(offset, blocks.epilogue_columns)
                    self.staging[warpgroup, first_buffer + i, :, columns] = y.astype(
                        self.settings.output_dtype
                    )
                if summands is not None:
                    over_columns = jnp.sum(summands, axis=1)
                    total = over_columns if total is None else total + over_columns
            plgpu.commit_smem()
            for i, ref in enumerate(self.outputs):
                self._write_piece(ref, first_buffer + i, tile, column, start, first)
            # One group a piece, be it empty, so that they can be counted.
            by_warps(lambda _: plgpu.commit_smem_to_gmem_group())
        if self.sums is not None:
            self.sums[tile, column, pl.ds(own, CONSUMER_ROWS)] = total

    def _epilogue(
        self, sums: tuple[Array, ...], start: Array, column: Array, first: int
    ) -> tuple[tuple[Array, ...], Array | None]:
        width = self._blocks.epilogue_columns
        shape = (CONSUMER_ROWS, width)
        rows = pl.ds(start, CONSUMER_ROWS)
        columns = pl.ds(column * self._blocks.columns + first, width)
        beside = tuple(
            plgpu.load(ref.at[rows, columns], layout=plgpu.Layout.WGMMA, optimized=False)
            for ref in self.beside
        )
        factor = None
        if self.factor is not None:
            factors = plgpu.load(
                self.factor.at[rows], layout=plgpu.Layout.WGMMA.reduce(1), optimized=False
            )
            factor = jax.lax.broadcast_in_dim(factors, shape, (0,))
        return self.settings.epilogue(
            tuple(x[:, first : first + width] for x in sums),
            tuple(x.astype(jnp.float32) for x in beside),
            factor,
        )

    def _write_piece(
        self, ref: Ref, buffer: int, tile: Array, column: Array, start: Array, first: int
    ) -> None:
        """Writes the rows and columns of a piece that are inside of the output."""
        blocks, warpgroup = self._blocks, jax.lax.axis_index("warpgroup")
        height = jnp.clip(self.tiles[END, tile] - start, 0, CONSUMER_ROWS)

        def write_rows(width: int) -> None:
            def by_warp(warp: Array) -> None:
                def write_row(i: Array, _: None) -> None:
                    row = i * 4 + warp
                    to = start + row
                    if self.output_index is not None:
                        to = self.output_index[to]
                    plgpu.copy_smem_to_gmem(
                        self.staging.at[warpgroup, buffer, row, pl.ds(0, width)],
                        ref.at[to, pl.ds(column * blocks.columns + first, width)],
                        commit_group=interpreted(),
                    )

                jax.lax.fori_loop(0, jax.lax.div(height - warp + 3, jnp.int32(4)), write_row, None)

            by_warps(by_warp)

        last = self._column_tiles - 1
        left = self.columns - last * blocks.columns - first
        if left >= blocks.staged_columns:
            write_rows(blocks.staged_columns)
        else:
            pl.when(column < last)(functools.partial(write_rows, blocks.staged_columns))
            if left > 0:
                pl.when(column == last)(functools.partial(write_rows, left))


def _wait_for_copies(in_flight: int, _: Array) -> None:
    plgpu.wait_smem_to_gmem(in_flight, wait_read_only=True)
