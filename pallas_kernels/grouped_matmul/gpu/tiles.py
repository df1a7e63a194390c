"""Tiles of the blocks of the persistent grid, computed by XLA from the group offsets.

A tile belongs to one expert: it begins at the expert's first row, or a multiple of the tile height
further. So an expert with n rows has `ceil(n / height)` tiles, wherever its rows begin, and no row
is multiplied twice.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

# Rows of the table of `row_tiles`.
COUNT, EXPERT, START, END = range(4)

_LIMITS = 64
_ROUNDING = 1e-3  # of a position, in tiles; what float32 may be wrong by, and far below a tile


def bounded_offsets(group_offsets: Array, num_rows: int) -> Array:
    """The offsets, made to ascend within [0, R]: kernels read and write by them unchecked."""
    return jax.lax.cummax(jnp.clip(group_offsets.astype(jnp.int32), 0, num_rows))


def row_tiles(group_offsets: Array, num_rows: int, height: int, *, rest: bool) -> Array:
    """The tiles of all experts, one after another.

    Args:
        group_offsets: int32 [E+1], whatever they hold.
        num_rows: R, what the last offset is at most.
        height: rows of a tile.
        rest: whether the rows without an expert have tiles too, of expert E.

    Returns:
        int32 [4, M], M static: the number of tiles (in the first column), and for each tile its
        expert, first row, and the end of its expert's rows.
    """
    offsets = bounded_offsets(group_offsets, num_rows)
    if rest:
        offsets = jnp.append(offsets, jnp.int32(num_rows))
    sizes = jnp.diff(offsets)
    counts = -(-sizes // height)
    ends = jnp.cumsum(counts)
    limit = num_rows // height + min(sizes.size, num_rows)
    tile = jnp.arange(max(limit, 1), dtype=jnp.int32)
    expert = jnp.searchsorted(ends, tile, side="right").astype(jnp.int32)
    expert = jnp.minimum(expert, sizes.size - 1)
    start = offsets[expert] + (tile - (ends - counts)[expert]) * height
    count = jnp.full_like(tile, ends[-1])
    return jnp.stack([count, expert, start, offsets[expert + 1]])


def position_in_tiles(group_offsets: Array, expert_of_row: Array, height: int) -> Array:
    """int32 [R]; where each grouped row is if the tiles of `row_tiles` are put under one another.

    Args:
        group_offsets: int32 [E+1].
        expert_of_row: int32 [R]; E for rows without an expert, which get any position.
        height: rows of a tile.
    """
    counts = -(-jnp.diff(group_offsets) // height)
    first = jnp.append(jnp.cumsum(counts) - counts, 0)
    row = jnp.arange(expert_of_row.size, dtype=jnp.int32)
    in_group = row - group_offsets[expert_of_row]
    return jnp.where(
        expert_of_row < counts.size, first[expert_of_row] * height + in_group, 0
    ).astype(jnp.int32)


def balanced_shares(
    sizes: Array, items: int, depth: int, overhead: int, blocks: int
) -> tuple[Array, Array]:
    """Splits the tiles of the weight gradients over the blocks, evenly by cost.

    A tile of an expert costs one unit for each `depth` of its rows and `overhead` units for being
    written. For a limit L on the cost of a block, `floor(L / cost)` tiles of an expert fit into
    one, so all tiles take the sum of `items / floor(L / cost)` blocks: the smallest L of a range is
    taken for which there are as many blocks. At twice the dearest tile, or the mean cost of a block
    if that is more, there always are. The busiest expert's tiles come first, each expert's one
    after another.

    Args:
        sizes: int32 [E]; rows of each expert.
        items: tiles an expert has.
        depth: rows of a step.
        overhead: see above.
        blocks: how many blocks there are.

    Returns:
        The experts, the busiest first, int32 [E]; and int32 [blocks + 1]: block b works on the
        tiles from element b to element b + 1, where tile `n * items + i` is tile i of the n-th
        expert in that order.
    """
    order = jnp.argsort(-sizes, stable=True).astype(jnp.int32)
    sizes = sizes[order]
    cost = (-(-sizes // depth) + overhead).astype(jnp.float32)
    least = jnp.maximum(jnp.sum(cost) * items / blocks, cost[0])
    limits = least * jnp.linspace(1.0, 2.0, _LIMITS + 1)
    blocks_taken = jnp.sum(items / (limits[:, None] // cost), axis=1)
    fitting = limits[jnp.argmax(blocks_taken <= blocks)] // cost  # tiles in a block, [E]
    before = jnp.cumsum(items / fitting) - items / fitting
    block = jnp.arange(1, blocks, dtype=jnp.float32)[:, None]
    earlier = jnp.ceil((block - before) * fitting - _ROUNDING).astype(jnp.int32)
    bounds = jnp.sum(jnp.clip(earlier, 0, items), axis=1)
    total = jnp.full((1,), sizes.size * items, jnp.int32)
    return order, jnp.concatenate([jnp.zeros(1, jnp.int32), bounds, total])


def in_bands(tile: Array, rows: Array, columns: int, width: int) -> tuple[Array, Array]:
    """The row and column of a tile in the order in which neighbours share operands.

    The order runs through bands of `width` columns, through the rows of a band, and through the
    columns of a row: blocks that run at the same time multiply few rows by few columns, which stay
    in the L2 cache.
    """
    if width >= columns:  # one band
        row = tile // columns
        return row, tile - row * columns
    band = tile // (rows * width)
    within = tile - band * rows * width
    in_row = jnp.minimum(width, columns - band * width)
    row = within // in_row
    return row, band * width + within - row * in_row
