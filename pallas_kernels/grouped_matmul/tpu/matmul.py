"""The grouped products: rows by experts' matrices, and the gradients of the matrices."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.typing import DTypeLike

from pallas_kernels.grouped_matmul.tpu.block_sizes import BlockSizes, cores_in_force, vmem_limit
from pallas_kernels.grouped_matmul.tpu.rows import (
    LANES,
    ROW_MULTIPLE,
    packed_dtype,
    packed_shape,
    padded_width,
    round_up,
    store_columns,
)
from pallas_kernels.grouped_matmul.tpu.tiles import Block, Rows, WorkItem, tile_call
from pallas_kernels.grouped_matmul.tpu.work_list import WorkList

# Sublanes that a register of the narrowest dtype packs; parts of a tile are multiples.
_PACKED_ROWS = 16
# Of a matrix that an iteration multiplies with, where its chunk is larger than 512 columns.
_ITERATION_ELEMENTS = 2 * 2**20


def dot(a: Array, b: Array, axes: tuple[int, int], precision: jax.lax.Precision) -> Array:
    """Contracts `axes` of a and b, accumulated in float32, in the wider of their dtypes."""
    dtype = jnp.promote_types(a.dtype, b.dtype)
    return lax.dot_general(
        a.astype(dtype),
        b.astype(dtype),
        (((axes[0],), (axes[1],)), ((), ())),
        precision=precision if dtype == jnp.float32 else jax.lax.Precision.DEFAULT,
        preferred_element_type=jnp.float32,
    )


def column_blocks(width: int, most: int) -> int:
    """Columns of a block: all of them, or the most multiples of 1024 that divide them.

    Blocks that divide the padded width never reach beyond the rows that are fetched.
    """
    if width <= most:
        return width
    units = round_up(width, ROW_MULTIPLE) // ROW_MULTIPLE
    fitting = [d for d in range(1, units + 1) if units % d == 0 and d * ROW_MULTIPLE <= most]
    return max(fitting, default=1) * ROW_MULTIPLE


def this_column(n: Any) -> Any:
    """The place of operands that are cut like the result."""
    return n


@dataclasses.dataclass(frozen=True)
class Chunks:
    """The inner loop over a block of `width` columns, and what of the preparation it hides.

    Attributes:
        width: columns of the block.
        size: columns of an iteration.
        parts: parts that the preparation of a tile is cut into.
        unrolled: whether the iterations are written out.
    """

    width: int
    size: int
    parts: int
    unrolled: bool

    @classmethod
    def of(cls, width: int, sizes: BlockSizes, height: int, depth: int) -> Chunks:
        """The largest chunk up to that of `sizes` that divides the block, or the block.

        Chunks of more than 512 columns only where a product sums over `depth` so short that the
        code of an iteration stays short enough to compile in seconds.
        """
        most = min(sizes.chunk, max(512, _ITERATION_ELEMENTS // depth))
        fitting = [size for size in range(LANES, most + 1, LANES) if width % size == 0]
        size = max(fitting, default=width)
        iterations = width // size
        parts = iterations if height % (iterations * _PACKED_ROWS) == 0 else 1
        return cls(width, size, parts, sizes.unrolled)

    @property
    def iterations(self) -> int:
        """Number of iterations of the inner loop."""
        return self.width // self.size

    def at(self, c: Any) -> Any:
        """The columns of an iteration."""
        if isinstance(c, int):
            return pl.ds(c * self.size, self.size)
        return pl.ds(pl.multiple_of(c * self.size, self.size), self.size)

    def loop(self, first: int, compute: Callable[[Any], None]) -> None:
        """Calls `compute` with the numbers of the iterations from `first` on."""
        if self.unrolled:
            for c in range(first, self.iterations):
                compute(c)
        elif first < self.iterations:
            lax.fori_loop(first, self.iterations, lambda c, carry: compute(c), None)

    def run(self, prepare: Callable[[Any], None], compute: Callable[[Any], None]) -> None:
        """Calls `compute(slice of columns)` for each chunk, and `prepare` for each part."""
        if self.parts == 1:
            prepare(0)

        def step(c: Any) -> None:
            if self.parts > 1:
                prepare(c)
            compute(self.at(c))

        if self.iterations == 1:
            step(0)
        else:
            self.loop(0, step)


def as_column(row: Array) -> Array:
    """[1, M] to [M, 128], the same in every lane."""
    return jnp.broadcast_to(row, (LANES, row.shape[1])).T


def fold_lanes(x: Array) -> Array:
    """[M, C] to [M, 128] (or [M, C] where C is no multiple), summing the lanes by columns."""
    if x.shape[1] % LANES:
        return x
    return functools.reduce(jnp.add, [x[:, i : i + LANES] for i in range(0, x.shape[1], LANES)])


def row_sums(partial: Array) -> Array:
    """[M, C] to [1, M]."""
    return jnp.sum(partial.T, axis=0, keepdims=True)


def row_blocks(values: Array, height: int) -> Array:
    """float32 [R] to [tiles, 1, height]: a scalar for each row, in the layout of `vector_block`."""
    tiles = -(-values.shape[0] // height)
    padded = jnp.pad(values.astype(jnp.float32), (0, tiles * height - values.shape[0]))
    return padded.reshape(tiles, 1, height)


def vector_block(height: int) -> Block:
    """The block of `row_blocks` that belongs to a tile."""
    return Block((None, 1, height), lambda n, e, t: (t, 0, 0))


def own_lanes(item: WorkItem) -> Array:
    """Boolean [1, height]; which rows of the tile belong to the expert, along the lanes."""
    return item.own_along(1)


@dataclasses.dataclass(frozen=True)
class Piece:
    """A range of columns of an array, cut where a block begins.

    Attributes:
        first: column.
        width: how many.
        total: columns of the array.
    """

    first: int
    width: int
    total: int

    @property
    def most(self) -> int:
        """The widest block that can divide the columns and what is before them."""
        return math.gcd(self.first, self.width)

    def at(self, block: int) -> int:
        """The number of blocks of that many columns before the first column."""
        assert self.first % block == 0, (self, block)
        return self.first // block


@dataclasses.dataclass(frozen=True)
class Product:
    """rows @ bank[expert], or its transpose.

    Attributes:
        source: which of the row operands.
        bank: [E, K, N], or [E, N, K] if transposed.
        transposed: whether the bank's last axis is contracted.
        pieces: in how many the sum over K is cut, ...
        piece: ... and which one this is.
        columns: which of N; None for all.
    """

    source: int
    bank: Array
    transposed: bool = False
    pieces: int = 1
    piece: int = 0
    columns: Piece | None = None

    @property
    def width(self) -> int:
        """N, or as much of it as is wanted."""
        if self.columns is not None:
            return self.columns.width
        return self.bank.shape[1 if self.transposed else 2]

    @property
    def depth(self) -> int:
        """K, or as much as a piece has of it."""
        return self.bank.shape[2 if self.transposed else 1] // self.pieces

    def block(self, columns: int, buffers: int) -> Block:
        """Blocks with all of the piece's depth."""
        last, piece = self.bank.shape[0] - 1, self.piece
        first = 0 if self.columns is None else self.columns.at(columns)
        if self.transposed:
            return Block(
                (None, columns, self.depth),
                lambda n, e, t: (jnp.minimum(e, last), first + n, piece),
                buffers,
            )
        return Block(
            (None, self.depth, columns),
            lambda n, e, t: (jnp.minimum(e, last), piece, first + n),
            buffers,
        )

    def chunk(self, a: Array, block: Any, at: Any, precision: jax.lax.Precision) -> Array:
        """The product for some columns of a block; float32 [M, columns]."""
        if self.transposed:
            return dot(a, block[at, :], (1, 1), precision)
        return dot(a, block[:, at], (1, 0), precision)


Epilogue = Callable[..., Array]


def bank_budget() -> int:
    """Bytes of VMEM that the blocks of all banks of a kernel may take."""
    return vmem_limit() * 3 // 5


def in_pieces(
    rows: Sequence[Rows], products: Sequence[Product]
) -> list[tuple[list[Rows], list[Product]]]:
    """Cuts a sum of products into sums that fit into VMEM each, or leaves it whole.

    First by product, then by depth, where rows can be cut at whole registers.
    """
    if _fits(products):
        return [(list(rows), list(products))]
    cut = []
    for product in products:
        units = product.depth // ROW_MULTIPLE if product.depth % ROW_MULTIPLE == 0 else 1
        for pieces in (d for d in range(1, units + 1) if units % d == 0):
            parts = [dataclasses.replace(product, source=0, pieces=pieces)]
            if _fits(parts) or pieces == units:
                break
        whole = rows[product.source]
        for piece in range(pieces):
            part = dataclasses.replace(parts[0], piece=piece)
            place = functools.partial(_constant, piece)
            cut.append(([dataclasses.replace(whole, width=part.depth, place=place)], [part]))
    return cut


def _constant(value: int, n: Any) -> int:
    del n
    return value


def _fits(products: Sequence[Product]) -> bool:
    block = column_blocks(products[0].width, ROW_MULTIPLE)
    size = sum(p.depth * p.bank.dtype.itemsize for p in products) * round_up(block, LANES)
    return size <= bank_budget()


def fit_columns(
    products: Sequence[Product], most: int, budget: int, *, narrow: bool
) -> tuple[int, int]:
    """Columns of a block, and how many buffers it gets, for blocks of all banks in `budget` bytes.

    Args:
        products: what is multiplied.
        most: most columns.
        budget: bytes.
        narrow: whether blocks may be narrower than 1024 columns; results for fetching rows from may
            not.

    Raises:
        ValueError: not even the narrowest block fits.
    """
    width = products[0].width
    depth = sum(p.depth * p.bank.dtype.itemsize for p in products)
    while True:
        block = column_blocks(width, most)
        size = depth * round_up(block, LANES)
        if 2 * size <= budget:
            return block, 2
        if most <= ROW_MULTIPLE or block <= ROW_MULTIPLE:
            if size <= budget:
                return block, 1
            for block in (512, 256, 128) if narrow else ():
                if block < width and depth * block <= budget:
                    return block, 2 if 2 * depth * block <= budget else 1
            raise ValueError(
                f"weights with {products[0].depth} rows to sum over need {size} bytes of VMEM for "
                f"{block} columns, and a kernel has {budget} for them"
            )
        most = (block - 1) // ROW_MULTIPLE * ROW_MULTIPLE


def _sum(*products: Array) -> Array:
    return functools.reduce(jnp.add, products)


def expert_products(
    work: WorkList,
    rows: Sequence[Rows],
    products: Sequence[Product],
    *,
    num_rows: int,
    sizes: BlockSizes,
    output_dtype: DTypeLike,
    as_rows: bool,
    precision: jax.lax.Precision,
    epilogue: Epilogue = _sum,
    bias: Array | None = None,
    scale: Array | None = None,
    against: Rows | None = None,
    name: str,
) -> tuple[Array, Array | None]:
    """Every grouped row by its expert's matrices: epilogue(products) + bias, times scale.

    Args:
        work: the work list, for every row.
        rows: row operands.
        products: what is multiplied; all of one width N.
        num_rows: R.
        sizes: of blocks.
        output_dtype: of the result.
        as_rows: whether the result is for fetching rows from, packed, or [R, N].
        precision: of the products.
        epilogue: makes one [M, columns] of the products.
        bias: [E, N].
        scale: [R].
        against: rows [R, N] to take the products with, before the scale.
        name: of the kernel.

    Returns:
        The result, and float32 [R], <row of the product, row of `against`>, or None. Rows in
        no item of the list hold anything.
    """
    width = products[0].width
    experts = products[0].bank.shape[0]
    height = work.height
    block, buffers = fit_columns(
        products, sizes.columns, bank_budget(), narrow=not as_rows and against is None
    )
    count = -(-width // block)
    ragged = count * block != width
    chunks = Chunks.of(block, sizes, height, sum(p.depth for p in products))
    blocks = [(p.bank, p.block(block, buffers)) for p in products]
    if bias is not None:
        place = lambda n, e, t: (jnp.minimum(e, experts - 1), 0, n)  # noqa: E731
        blocks.append((bias[:, None, :], Block((None, 1, block), place)))
    if scale is not None:
        blocks.append((row_blocks(scale, height), vector_block(height)))
    operands = list(rows)
    lanes = LANES if chunks.size % LANES == 0 else chunks.size
    scratch = []
    results: list[tuple[jax.ShapeDtypeStruct, Block | None]] = []
    if as_rows:
        planes, *rest = packed_shape(num_rows, block, output_dtype)
        results.append(
            (
                jax.ShapeDtypeStruct((count * planes, *rest), packed_dtype(output_dtype)),
                Block((planes, height, LANES), lambda n, e, t: (n, t, 0)),
            )
        )
        scratch.append(pltpu.VMEM((height, padded_width(block)), jnp.float32))
    else:
        results.append(
            (
                jax.ShapeDtypeStruct((num_rows, width), output_dtype),
                Block((height, block), lambda n, e, t: (t, n)),
            )
        )
    if against is not None:
        results.append(
            (
                jax.ShapeDtypeStruct((count, work.tiles, 1, height), jnp.float32),
                Block((None, None, 1, height), lambda n, e, t: (n, t, 0, 0)),
            )
        )
        scratch.append(pltpu.VMEM((height, lanes), jnp.float32))
        operands.append(dataclasses.replace(against, width=block, place=this_column))

    def body(
        item: WorkItem, tiles: Any, block_refs: Any, outs: Any, scratch_refs: Any, prepare: Any
    ) -> None:
        out = outs[0]
        banks = block_refs[: len(products)]
        others = list(block_refs[len(products) :])
        bias_ref = others.pop(0) if bias is not None else None
        factor = as_column(others.pop(0)[...])[:, :1] if scale is not None else None
        own = item.own()
        routed = item.expert < experts
        if against is not None:
            scratch_refs[-1][...] = jnp.zeros_like(scratch_refs[-1])

        def compute(at: Any) -> None:
            y = epilogue(
                *(
                    p.chunk(tiles[p.source][...], bank, at, precision)
                    for p, bank in zip(products, banks, strict=True)
                )
            )
            if bias_ref is not None:
                y = y + bias_ref[:, at].astype(jnp.float32)
            if against is not None:
                terms = y * tiles[-1][:, at].astype(jnp.float32)
                if ragged:  # the last block reaches beyond what there is
                    column = lax.broadcasted_iota(jnp.int32, (1, at.size), 1) + at.start
                    terms = jnp.where(item.column * block + column < width, terms, 0)
                scratch_refs[-1][...] += fold_lanes(terms)
            if factor is not None:
                y = y * factor
            if as_rows:
                scratch_refs[0][:, at] = y
            else:
                y = jnp.where(routed, y, 0).astype(output_dtype)
                out[:, at] = jnp.where(own, y, out[:, at])

        chunks.run(prepare, compute)
        if as_rows:
            store_columns(out, scratch_refs[0], output_dtype, own)
        if against is not None:
            sums = row_sums(scratch_refs[-1][...])
            sums = jnp.where(routed, sums, 0)
            outs[1][...] = jnp.where(own_lanes(item), sums, outs[1][...])

    depth = sum(p.depth for p in products)
    outputs = tile_call(
        body,
        work,
        name=name,
        columns=count,
        rows=operands,
        blocks=blocks,
        results=results,
        scratch=scratch,
        parts=chunks.parts,
        vmem_limit=vmem_limit(),
        cost=pl.CostEstimate(
            flops=2 * num_rows * depth * width,
            bytes_accessed=sum(p.bank.size * p.bank.dtype.itemsize for p in products)
            + num_rows * (depth + width) * jnp.dtype(output_dtype).itemsize,
            transcendentals=0,
        ),
    )
    dots = None if against is None else jnp.sum(outputs[1], axis=0).reshape(-1)[:num_rows]
    return outputs[0], dots


def weight_gradient(
    work: WorkList,
    left: Rows,
    right: Rows,
    *,
    experts: int,
    sizes: BlockSizes,
    output_dtype: DTypeLike,
    precision: jax.lax.Precision,
    scale: Array | None = None,
    with_sums: bool = False,
    piece: Piece | None = None,
    into: Array | None = None,
    name: str,
) -> tuple[Array, Array | None]:
    """left.T @ (right times scale) over each expert's rows, [E, K, N].

    Args:
        work: the work list, for every expert.
        left: rows [R, K].
        right: rows [R, N].
        experts: E.
        sizes: of blocks.
        output_dtype: of the result.
        precision: of the products.
        scale: [R].
        with_sums: also sum `right` times scale over each expert's rows.
        piece: which rows of the products `left` has the columns for; by default, all.
        into: [E, K, N], products of which this adds a piece.
        name: of the kernel.

    Returns:
        The products, and float32 [E, N] or None.
    """
    height, depth, width = work.height, left.width, right.width
    piece = Piece(0, depth, depth) if piece is None else piece
    block = column_blocks(width, sizes.columns)
    across = -(-width // block)
    # The sum and its two output buffers may fill half of VMEM.
    area = vmem_limit() // 2 // (4 + 2 * jnp.dtype(output_dtype).itemsize)
    tall = max(area // round_up(block, LANES), ROW_MULTIPLE)
    tall = column_blocks(depth, min(tall, piece.most))
    before = piece.at(tall)
    count = across * -(-depth // tall)
    cores = cores_in_force() if count % cores_in_force() == 0 else 1
    left = dataclasses.replace(left, width=tall, place=lambda n: lax.div(n, across))
    right = dataclasses.replace(right, width=block, place=lambda n: lax.rem(n, across))
    chunks = Chunks.of(block, sizes, height, tall)
    blocks = []
    if scale is not None:
        blocks.append((row_blocks(scale, height), vector_block(height)))
    results: list[tuple[jax.ShapeDtypeStruct, Block | None]] = [
        (
            jax.ShapeDtypeStruct((experts, piece.total, width), output_dtype),
            Block(
                (None, tall, block),
                lambda n, e, t: (e, before + lax.div(n, across), lax.rem(n, across)),
            ),
        )
    ]
    scratch = [pltpu.VMEM((tall, block), jnp.float32), pltpu.VMEM((height, tall), left.dtype)]
    if with_sums:
        results.append(
            (
                jax.ShapeDtypeStruct((experts, 1, width), jnp.float32),
                Block((None, 1, block), lambda n, e, t: (e, 0, lax.rem(n, across))),
            )
        )
        scratch.append(pltpu.VMEM((1, block), jnp.float32))

    def body(
        item: WorkItem, tiles: Any, block_refs: Any, outs: Any, scratch_refs: Any, prepare: Any
    ) -> None:
        total, masked = scratch_refs[:2]

        @pl.when(item.opens_expert)
        def _() -> None:
            for ref in (total, *scratch_refs[2:]):
                ref[...] = jnp.zeros_like(ref)

        own = item.own()
        factor = as_column(block_refs[0][...])[:, :1] if scale is not None else None
        a = tiles[0][...]
        masked[...] = jnp.where(own, a, jnp.zeros_like(a))

        def compute(at: Any) -> None:
            b = tiles[1][:, at]
            b = jnp.where(own, b if factor is None else b.astype(jnp.float32) * factor, 0)
            if with_sums:
                sums = jnp.sum(b.astype(jnp.float32), axis=0, keepdims=True)
                scratch_refs[2][:, at] += sums
            total[:, at] += dot(masked[...], b.astype(right.dtype), (0, 0), precision)

        chunks.run(prepare, compute)

        @pl.when(item.closes_expert)
        def _() -> None:
            outs[0][...] = total[...].astype(output_dtype)
            if with_sums:
                outs[1][...] = scratch_refs[2][...]

    num_rows = work.offsets.shape[0]
    outputs = tile_call(
        body,
        work,
        name=name,
        columns=count,
        rows=[left, right],
        blocks=blocks,
        results=results,
        into=[into],
        scratch=scratch,
        parts=chunks.parts,
        column_cores=cores,
        vmem_limit=vmem_limit(),
        cost=pl.CostEstimate(
            flops=2 * work.tiles * height * depth * width,
            bytes_accessed=experts * depth * width * jnp.dtype(output_dtype).itemsize
            + num_rows * (depth + width) * left.dtype.itemsize,
            transcendentals=0,
        ),
    )
    return outputs[0], outputs[1][:, 0] if with_sums else None
