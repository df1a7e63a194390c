"""The frame of the kernels that work tile by tile through the grouped rows.

A grid step is one item of the work list (`work_list`) for one column block. Where a jax device has
two cores, the outermost axis of the grid divides the work list, or the column blocks, between them;
all else of the grid is a core's own, and so are scratch and pipelines. Operands come as

- `Rows`: the tile's rows, fetched one by one through an index where they have one;
- blocks: whatever a `pl.BlockSpec` can describe, pipelined by Pallas.

Rows with an index run through a pipeline of three stages, so that nothing stands between the
products of two steps: while a step multiplies, the rows of the next step (already fetched) are
unpacked into the form of the product, and the rows of the step after that are fetched.
Both are cut into parts, which the body calls for between its products, without a predicate: under
one they would not be scheduled beside the products. The last steps therefore prepare the first
tiles once more.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.grouped_matmul.tpu.rows import (
    LANES,
    index_blocks,
    load_columns,
    packed_shape,
    start_rows,
    unpacked_dtype,
    wait_rows,
)
from pallas_kernels.grouped_matmul.tpu.work_list import WorkList


def _first(n: Any) -> Any:
    del n
    return 0


@dataclasses.dataclass(frozen=True)
class Rows:
    """The rows of the tiles, all columns of them or a block.

    Attributes:
        rows: [R, D] in grouped order, or, with an index, any packed rows (`rows`).
        width: columns of a tile; if not all, a multiple of 1024.
        index: int32 [N]; which row each grouped row reads; None for rows in grouped order.
        place: which block of columns, from the column block of the grid.
    """

    rows: Array
    width: int
    index: Array | None = None
    place: Callable[[Any], Any] = _first

    @property
    def dtype(self) -> Any:
        """The dtype of the rows."""
        return self.rows.dtype if self.index is None else unpacked_dtype(self.rows)

    def buffer(self, height: int) -> tuple[int, int, int]:
        """The shape of a packed tile; of an array of rows that has no more, all of its planes."""
        planes, rows, lanes = packed_shape(height, self.width, self.dtype)
        return min(planes, self.rows.shape[0]), rows, lanes


@dataclasses.dataclass(frozen=True)
class Division:
    """The division of the work over the grid's axes (core, column block, item).

    Attributes:
        length: of a core's work list; 0 if both have the same one.
        columns: column blocks of a core; 0 if both have the same ones.
    """

    length: int
    columns: int

    def item(self, core: Any, number: Any) -> Any:
        """The place of an item in the work lists."""
        return core * self.length + number if self.length else number

    def column(self, core: Any, number: Any) -> Any:
        """The column block."""
        return core * self.columns + number if self.columns else number


@dataclasses.dataclass(frozen=True)
class Block:
    """An operand or a result in blocks.

    Attributes:
        shape: of a block; None for axes that are squeezed away.
        place: the block's position, from (column block, expert, tile).
        buffers: how many blocks are held, 2 to fetch one ahead.
    """

    shape: tuple[int | None, ...]
    place: Callable[[Any, Any, Any], tuple[Any, ...]]
    buffers: int = 2

    def spec(self, division: Division) -> pl.BlockSpec:
        """The block as Pallas takes it: grid indices, then the scalars of `WorkList`."""

        def place(c: Any, n: Any, v: Any, expert: Any, tile: Any, *rest: Any) -> Any:
            del rest
            at = division.item(c, v)
            return self.place(division.column(c, n), expert[at], tile[at])

        mode = None if self.buffers == 2 else pl.Buffered(self.buffers)
        return pl.BlockSpec(self.shape, place, pipeline_mode=mode)


class WorkItem:
    """The work item of a grid step, as a kernel body sees it.

    Attributes:
        core: 0 or 1.
        column: the column block.
        expert: the item's expert, E for rows that have none.
        tile: its tile.
        first_expert: of this core.
        partial: the expert whose rows may be divided between the cores, or -1; see `WorkList`.
        opens_expert: whether it is the core's first item of the expert.
        closes_expert: whether it is the core's last one.
        ends: whether it is the core's last item of this column block.
    """

    def __init__(self, scalars: Sequence[Any], height: int, cores: int, division: Division):
        experts, tiles, self._offsets, count, partial = scalars
        self.core: Any = pl.program_id(0) if cores > 1 else 0
        self.number, self.steps = pl.program_id(2), count[0]
        self.column = division.column(self.core, pl.program_id(1))
        at = functools.partial(division.item, self.core)
        self.expert, self.tile = experts[at(self.number)], tiles[at(self.number)]
        self.first_expert, self.partial = experts[at(0)], partial[self.core]
        # Steps that only wait for the other core own nothing.
        self._idle = self.number >= count[1 + self.core] if division.length else None
        before = jnp.maximum(self.number - 1, 0)
        after = jnp.minimum(self.number + 1, self.steps - 1)
        start, self.ends = self.number == 0, self.number == self.steps - 1
        self.opens_expert = start | (experts[at(before)] != self.expert)
        self.closes_expert = self.ends | (experts[at(after)] != self.expert)
        self.height = height

    def own_along(self, axis: int) -> Array:
        """Boolean, `height` along one of two axes: which rows are the expert's."""
        shape = tuple(self.height if i == axis else 1 for i in (0, 1))
        rows = lax.broadcasted_iota(jnp.int32, shape, axis) + self.tile * self.height
        lower, upper = self._offsets[self.expert], self._offsets[self.expert + 1]
        if self._idle is not None:
            upper = jnp.where(self._idle, lower, upper)
        return (rows >= lower) & (rows < upper)

    def own(self) -> Array:
        """Boolean [height, 1]; which rows of the tile belong to the expert."""
        return self.own_along(0)


# Given the item, refs of the tiles [height, D], of the blocks, of the results and of the scratch,
# and a function that does one part of the preparation of later steps.
Body = Callable[..., None]


@dataclasses.dataclass(frozen=True)
class _Fetch:
    """One operand's pipeline, inside the kernel.

    `raw` and `flat` hold two tiles each, as fetched and as multiplied. At step s, `flat[s % 2]` is
    multiplied, `raw[(s + 1) % 2]` becomes `flat[(s + 1) % 2]`, and `raw[s % 2]` is fetched.
    """

    rows: Rows
    source: Any
    indices: tuple[Any, Any, Any]  # of this step's rows, the next step's, and the one's after it
    raw: Any
    flat: Any
    semaphore: Any

    def start(self, index: Any, buffer: Any, first: Any, count: int, column: Any) -> None:
        size = self.raw.shape[1]
        source = self.source
        if size < source.shape[0]:
            source = source.at[pl.ds(self.rows.place(column) * size, size)]
        start_rows(source, index, self.raw.at[buffer], self.semaphore.at[buffer], first, count)

    def wait(self, buffer: Any) -> None:
        wait_rows(self.raw.at[buffer], self.semaphore.at[buffer])

    def flatten(self, buffer: Any, first: Any, count: int) -> None:
        rows, width = pl.ds(first, count), self.flat.shape[2]
        for column, values in load_columns(self.raw.at[buffer], first, count, self.flat.dtype):
            if column < width:
                some = min(LANES, width - column)
                place = slice(column, column + some)
                self.flat[buffer, rows, place] = values[:, :some].astype(self.flat.dtype)

    def begin(self, first: Any, second: Any) -> None:
        """Makes the tile of the first step ready, and fetches that of the second.

        Args:
            first: the column block of the first step.
            second: the column block of the second step.
        """
        height = self.raw.shape[2]
        some = 8 if height % 8 == 0 else 1

        def start(tile: int, column: Any) -> None:
            def part(j: Any, carry: None) -> None:
                self.start(self.indices[tile], tile, j * some, some, column)

            lax.fori_loop(0, height // some, part, None)

        start(0, first)
        start(1, second)
        self.wait(0)
        self.flatten(0, 0, height)


def _direct_block(rows: Rows, height: int) -> Block:
    return Block((height, rows.width), lambda n, e, t: (t, rows.place(n)))


def tile_call(
    body: Body,
    work: WorkList,
    *,
    name: str,
    columns: int,
    rows: Sequence[Rows] = (),
    blocks: Sequence[tuple[Array, Block]] = (),
    results: Sequence[tuple[jax.ShapeDtypeStruct, Block | None]],
    into: Sequence[Array | None] = (),
    scratch: Sequence[Any] = (),
    parts: int = 1,
    column_cores: int = 1,
    vmem_limit: int,
    cost: pl.CostEstimate,
) -> tuple[Array, ...]:
    """Runs `body(item, tiles, blocks, results, scratch, prepare)` for every item and column block.

    Args:
        body: computes a step. It calls `prepare(part)` once for each of the `parts`, where the
            scheduler can hide it.
        work: the work list.
        name: of the kernel, as compilers and profilers show it.
        columns: how often the work list is gone through.
        rows: operands whose tiles the body gets.
        blocks: operands in blocks.
        results: shapes and blocks of the results; those without a block stay in HBM, and the body
            copies to them.
        into: for each result an array that it takes the place of, or None; blocks that no item
            writes stay as they were. May be shorter than the results.
        scratch: VMEM scratch shapes.
        parts: into how many equal parts a tile's preparation is divided.
        column_cores: cores that the columns are divided between; if above 1, the items are not.
        vmem_limit: bytes.
        cost: what the kernel does, for XLA's scheduler.
    """
    height = work.height
    share = height // parts
    cores = max(work.cores, column_cores)
    assert share * parts == height, (height, parts)
    assert 1 in (work.cores, column_cores), "the items or the columns are divided"
    assert columns % column_cores == 0, (columns, column_cores)
    columns //= column_cores
    division = Division(
        work.expert.shape[0] // cores if work.cores > 1 else 0,
        columns if column_cores > 1 else 0,
    )
    fetched = [r for r in rows if r.index is not None]
    direct = [r for r in rows if r.index is None]

    def index_spec(ahead: int) -> pl.BlockSpec:
        def place(c: Any, n: Any, v: Any, expert: Any, tile: Any, offsets: Any, *rest: Any) -> Any:
            del n, expert, offsets
            count, _ = rest
            return tile[division.item(c, lax.rem(v + ahead, count[0]))], 0, 0

        return pl.BlockSpec((None, 1, height), place, memory_space=pltpu.SMEM)

    operands: list[Array] = []
    specs: list[pl.BlockSpec] = []
    buffers: list[Any] = []
    for operand in fetched:
        source, width = operand.rows, operand.width
        assert operand.index is not None
        index = index_blocks(operand.index, source.shape[1], height)
        operands += [pltpu.with_memory_space_constraint(source, pltpu.HBM), index, index, index]
        specs += [pl.BlockSpec(memory_space=pltpu.HBM), *map(index_spec, range(3))]
        buffers += [
            pltpu.VMEM((2, *operand.buffer(height)), source.dtype),
            pltpu.VMEM((2, height, width), operand.dtype),
            pltpu.SemaphoreType.DMA((2,)),
        ]
    operands += [r.rows for r in direct]
    specs += [_direct_block(r, height).spec(division) for r in direct]
    operands += [array for array, _ in blocks]
    specs += [block.spec(division) for _, block in blocks]
    in_hbm = pl.BlockSpec(memory_space=pltpu.HBM)
    aliases = {}
    for result, array in enumerate(into):
        if array is not None:
            aliases[len(work.scalars) + len(operands)] = result
            operands.append(array)
            specs.append(in_hbm)

    def kernel(*refs: Any) -> None:
        remaining = list(refs)

        def take(count: int) -> list[Any]:
            taken = remaining[:count]
            del remaining[:count]
            return taken

        item = WorkItem(take(len(work.scalars)), height, cores, division)
        sources = [take(4) for _ in fetched]
        direct_refs, block_refs = take(len(direct)), take(len(blocks))
        take(len(aliases))  # the results themselves
        result_refs, scratch_refs = take(len(results)), take(len(scratch))
        pipelines = [
            _Fetch(r, source, tuple(indices), *take(3))
            for r, (source, *indices) in zip(fetched, sources, strict=True)
        ]
        column = pl.program_id(1)
        step = column * item.steps + item.number
        buffer = lax.rem(step, 2)

        def column_of(ahead: int) -> Any:
            later = column + lax.div(item.number + ahead, item.steps)
            return division.column(item.core, lax.rem(later, columns))

        @pl.when(step == 0)
        def _() -> None:
            for pipeline in pipelines:
                pipeline.begin(column_of(0), column_of(1))

        for pipeline in pipelines:
            pipeline.wait(1 - buffer)

        def prepare(part: Any) -> None:
            first = part * share
            for pipeline in pipelines:
                pipeline.flatten(1 - buffer, first, share)
                pipeline.start(pipeline.indices[2], buffer, first, share, column_of(2))

        flat, whole = iter(p.flat.at[buffer] for p in pipelines), iter(direct_refs)
        tiles = [next(whole) if r.index is None else next(flat) for r in rows]
        body(item, tiles, block_refs, result_refs, scratch_refs, prepare)

        if pipelines:

            @pl.when((column == columns - 1) & item.ends)
            def _() -> None:
                for pipeline in pipelines:
                    pipeline.wait(buffer)

    outputs = pl.pallas_call(
        kernel,
        out_shape=[shape for shape, _ in results],
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(work.scalars),
            grid=(cores, columns, work.count[0]),
            in_specs=specs,
            out_specs=[in_hbm if block is None else block.spec(division) for _, block in results],
            scratch_shapes=[
                *scratch,
                *buffers,
            ],
        ),
        compiler_params=pltpu.CompilerParams(
            # What a core keeps from step to step is made ready in its own first step.
            dimension_semantics=("parallel", "arbitrary", "arbitrary"),
            vmem_limit_bytes=vmem_limit,
            disable_bounds_checks=True,
        ),
        input_output_aliases=aliases,
        cost_estimate=cost,
        name=name,
    )(*work.scalars, *operands)
    return tuple(outputs)
