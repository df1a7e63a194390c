"""The kernel of the weight gradients: rows transposed, by rows, over the rows of each expert.

A persistent grid as in `rows`. Both operands are rows read by index, and rows beyond the end of
an expert's are read as zeros, so that nothing of another expert meets a product. Tiles of experts
differ in cost by the experts' loads: `tiles.balanced_shares` splits them evenly.
"""

from __future__ import annotations

import dataclasses
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
    Blocks,
)
from pallas_kernels.grouped_matmul.gpu.row_reader import (
    RowReader,
    commit_reads,
    tile_transforms,
    wait_for_reads,
)
from pallas_kernels.grouped_matmul.gpu.tiles import balanced_shares, in_bands

Ref = Any
# What writing a tile costs, in steps of the contracted axis: 128 x 256 results at a few bytes each
# against 48 KiB a step.
_WRITING_COST = 2


@dataclasses.dataclass(frozen=True)
class WeightGradients:
    """Settings of `sum_products`, apart from the arrays.

    Attributes:
        blocks: the block sizes.
        terms: which of the left arrays by which of the right arrays, to be added up.
        dtype: of the gradients.
        multiprocessors: blocks of the grid.
    """

    blocks: Blocks
    terms: tuple[tuple[int, int], ...]
    dtype: DTypeLike
    multiprocessors: int


def sum_products(
    settings: WeightGradients,
    left: tuple[Array, ...],
    right: tuple[Array, ...],
    group_offsets: Array,
    *,
    left_index: Array | None = None,
    right_index: Array | None = None,
    scale: Array | None = None,
) -> Array:
    """Sums the outer products of left and right rows over the rows of each expert.

    Args:
        settings: the rest of the problem.
        left: arrays [S, D] of a dtype two bytes wide, D a multiple of 64.
        right: arrays [U, F] of the same dtype, F a multiple of 64.
        group_offsets: int32 [E+1].
        left_index: int32 [R], the left row for each grouped row; None if they are the same.
        right_index: the same for right rows.
        scale: float32 [at least R and a step], what the left row of each grouped row is multiplied
            with, in the dtype of the rows; None for ones.

    Returns:
        [E, D, F]; exact zeros for experts without rows.
    """
    blocks = settings.blocks
    dtype = left[0].dtype
    experts = group_offsets.size - 1
    height, width = left[0].shape[1], right[0].shape[1]
    items = pl.cdiv(height, blocks.rows) * pl.cdiv(width, blocks.columns)
    order, shares = balanced_shares(
        jnp.diff(group_offsets), items, blocks.depth, _WRITING_COST, settings.multiprocessors
    )
    optional = {"left_index": left_index, "right_index": right_index, "scale": scale}
    given = {name: array for name, array in optional.items() if array is not None}

    def body(shares: Ref, order: Ref, offsets: Ref, *refs: Ref) -> None:
        remaining = list(refs)

        def take(count: int) -> list[Ref]:
            taken = remaining[:count]
            del remaining[:count]
            return taken

        left_refs, right_refs = take(len(left)), take(len(right))
        named = dict.fromkeys(optional) | dict(zip(given, take(len(given)), strict=True))
        output, left_ring, right_ring, staging, full, empty = remaining
        kernel = _Kernel(
            settings,
            shares,
            order,
            offsets,
            left_refs,
            right_refs,
            output,
            left_ring,
            right_ring,
            staging,
            full,
            empty,
            **named,
        )
        is_consumer = jax.lax.axis_index("warpgroup") < CONSUMERS
        pl.when(is_consumer)(kernel.consume)
        pl.when(jnp.logical_not(is_consumer))(kernel.produce)

    kernel = plgpu.kernel(
        body,
        out_type=jax.ShapeDtypeStruct((experts, height, width), settings.dtype),
        grid=(settings.multiprocessors,),
        grid_names=("block",),
        num_threads=CONSUMERS + 1,
        thread_name="warpgroup",
        scratch_types=[
            plgpu.SMEM(
                (blocks.stages, blocks.depth, blocks.rows), dtype, transforms=tile_transforms(dtype)
            ),
            plgpu.SMEM(
                (blocks.stages, blocks.depth, blocks.columns),
                dtype,
                transforms=tile_transforms(dtype),
            ),
            plgpu.SMEM(
                (CONSUMERS, blocks.staging_buffers, CONSUMER_ROWS, blocks.staged_columns),
                settings.dtype,
                transforms=tile_transforms(settings.dtype),
            ),
            plgpu.Barrier(num_arrivals=1, num_barriers=blocks.stages),
            plgpu.Barrier(num_arrivals=CONSUMERS, num_barriers=blocks.stages),
        ],
        compiler_params=plgpu.CompilerParams(lowering_semantics=plgpu.LoweringSemantics.Lane),
    )
    gradients: Array = kernel(shares, order, group_offsets, *left, *right, *given.values())
    return gradients


@dataclasses.dataclass(frozen=True)
class _Kernel:
    """The kernel's body, with its references."""

    settings: WeightGradients
    shares: Ref
    order: Ref
    offsets: Ref
    left: list[Ref]
    right: list[Ref]
    output: Ref
    left_ring: Ref
    right_ring: Ref
    staging: Ref
    full: Ref
    empty: Ref
    left_index: Ref | None
    right_index: Ref | None
    scale: Ref | None

    @property
    def _blocks(self) -> Blocks:
        return self.settings.blocks

    def _stage(self, step: Array) -> Array:
        return jax.lax.rem(step, jnp.int32(self._blocks.stages))

    def _for_each_tile(self, compute: Callable[..., Array]) -> Array:
        """Calls `compute(expert, row tile, column tile, steps done)` for the block's tiles."""
        block = jax.lax.axis_index("block")
        _, height, width = self.output.shape
        row_tiles = pl.cdiv(height, self._blocks.rows)
        column_tiles = pl.cdiv(width, self._blocks.columns)

        def one(i: Array, done: Array) -> Array:
            nth = jax.lax.div(i, jnp.int32(row_tiles * column_tiles))
            tile = i - nth * (row_tiles * column_tiles)
            row, column = in_bands(tile, jnp.int32(row_tiles), column_tiles, self._blocks.band)
            return compute(self.order[nth], row, column, done)

        return jax.lax.fori_loop(self.shares[block], self.shares[block + 1], one, jnp.int32(0))

    def _range(self, expert: Array) -> tuple[Array, Array, Array]:
        """An expert's first row, the end of its rows, and how many steps they take."""
        start, end = self.offsets[expert], self.offsets[expert + 1]
        depth = self._blocks.depth
        return start, end, jax.lax.div(end - start + depth - 1, jnp.int32(depth))

    # ------------------------------------------------------------------------------- producer

    def produce(self) -> None:
        """Fills the rings."""
        plgpu.set_max_registers(PRODUCER_REGISTERS, action="decrease")
        blocks, dtype = self._blocks, self.left[0].dtype
        _, height, width = self.output.shape
        left_reader = RowReader(blocks.depth, blocks.rows, height, dtype, zero_rows=True)
        right_reader = RowReader(blocks.depth, blocks.columns, width, dtype, zero_rows=True)

        def compute(expert: Array, row: Array, column: Array, done: Array) -> Array:
            start, end, steps = self._range(expert)

            def indices(k: Array) -> tuple[Array, Array]:
                first = start + k * blocks.depth
                return (
                    left_reader.row_indices(self.left_index, first, end),
                    right_reader.row_indices(self.right_index, first, end),
                )

            for left, right in self.settings.terms:

                def fill(
                    k: Array, state: tuple[Any, Array], left: int = left, right: int = right
                ) -> tuple[Any, Array]:
                    (left_rows, right_rows), done = state
                    following = indices(k + 1)  # on their way while this step waits
                    stage = self._stage(done)
                    plgpu.barrier_wait(self.empty.at[stage])
                    left_reader.read(
                        self.left[left], self.left_ring.at[stage], left_rows, row * blocks.rows
                    )
                    right_reader.read(
                        self.right[right],
                        self.right_ring.at[stage],
                        right_rows,
                        column * blocks.columns,
                    )
                    commit_reads()
                    wait_for_reads(blocks.reads_in_flight)

                    @pl.when(done >= blocks.reads_in_flight)
                    def _arrived() -> None:
                        plgpu.barrier_arrive(
                            self.full.at[self._stage(done - blocks.reads_in_flight)]
                        )

                    return following, done + 1

                _, done = jax.lax.fori_loop(0, steps, fill, (indices(jnp.int32(0)), done))
            return done

        done = self._for_each_tile(compute)
        wait_for_reads(0)

        def arrive(step: Array, _: None) -> None:
            plgpu.barrier_arrive(self.full.at[self._stage(step)])

        jax.lax.fori_loop(jnp.maximum(done - blocks.reads_in_flight, 0), done, arrive, None)
        # Every release is waited for, also the last ones: no barrier is left in mid-phase.
        for stage in range(blocks.stages):
            plgpu.barrier_wait(self.empty.at[stage])

    # ------------------------------------------------------------------------------ consumers

    def consume(self) -> None:
        """Multiplies what is in the rings, and writes the tiles."""
        plgpu.set_max_registers(CONSUMER_REGISTERS, action="increase")
        blocks = self._blocks
        for stage in range(blocks.stages):
            plgpu.barrier_arrive(self.empty.at[stage])
        own = jax.lax.axis_index("warpgroup") * CONSUMER_ROWS

        def compute(expert: Array, row: Array, column: Array, done: Array) -> Array:
            start, _, term_steps = self._range(expert)
            steps = term_steps * len(self.settings.terms)

            def multiply(accumulator: Ref) -> Array:
                def step(k: Array, _: None) -> None:
                    stage = self._stage(done + k)
                    plgpu.barrier_wait(self.full.at[stage])
                    left = self.left_ring.at[stage, :, pl.ds(own, CONSUMER_ROWS)]
                    if self.scale is not None:
                        self._scale(left, start + jax.lax.rem(k, term_steps) * blocks.depth)
                    plgpu.wgmma(accumulator, left.T, self.right_ring.at[stage])
                    plgpu.wgmma_wait(1)

                    @pl.when(k > 0)
                    def _release() -> None:
                        plgpu.barrier_arrive(self.empty.at[self._stage(done + k - 1)])

                jax.lax.fori_loop(0, steps, step, None)
                return accumulator[...]

            shape = (CONSUMER_ROWS, blocks.columns)
            total = pl.run_scoped(multiply, plgpu.ACC(shape, jnp.float32))

            @pl.when(steps > 0)
            def _release_last() -> None:
                plgpu.barrier_arrive(self.empty.at[self._stage(done + steps - 1)])

            self._write(total.astype(self.settings.dtype), expert, row * blocks.rows + own, column)
            return done + steps

        self._for_each_tile(compute)
        plgpu.wait_smem_to_gmem(0)

    def _scale(self, rows: Ref, first: Array) -> None:
        assert self.scale is not None
        scale = plgpu.load(
            self.scale.at[pl.ds(first, self._blocks.depth)],
            layout=plgpu.Layout.WGMMA.reduce(1),
            optimized=False,
        )
        values = rows[...].astype(jnp.float32)
        rows[...] = (values * jax.lax.broadcast_in_dim(scale, values.shape, (0,))).astype(
            rows.dtype
        )
        plgpu.commit_smem()

    def _write(self, total: Array, expert: Array, first_row: Array, column: Array) -> None:
        blocks, warpgroup = self._blocks, jax.lax.axis_index("warpgroup")
        _, height, width = self.output.shape
        for piece in range(blocks.columns // blocks.staged_columns):
            first = piece * blocks.staged_columns
            first_column = column * blocks.columns + first

            # TMA leaves out what lies beyond the array, as long as the box begins inside of it.
            @pl.when((first_row < height) & (first_column < width))
            def _write_piece(piece: int = piece, first: int = first) -> None:
                buffer = piece % blocks.staging_buffers
                # The last tile's copies may have come from either buffer.
                in_flight = blocks.staging_buffers - 1 if piece else 0
                plgpu.wait_smem_to_gmem(in_flight, wait_read_only=True)
                self.staging[warpgroup, buffer] = total[:, first : first + blocks.staged_columns]
                plgpu.commit_smem()
                plgpu.copy_smem_to_gmem(
                    self.staging.at[warpgroup, buffer],
                    self.output.at[
                        expert,
                        pl.ds(first_row, CONSUMER_ROWS),
                        pl.ds(column * blocks.columns + first, blocks.staged_columns),
                    ],
                )
