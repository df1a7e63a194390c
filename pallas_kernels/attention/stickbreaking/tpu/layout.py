"""The arrays that the TPU kernels read: rows, blocks of keys in running order, and what rows see.

**Rows.** The queries of the heads that share a key/value head are rows of one array, in the order
of their positions: `[B, G, Sq * R, d]`. They are filled up to whole blocks with zeros.

**Running order.** A tile of logits is key-major, `[keys, rows]`: registers hold 8 keys (sublanes)
by 128 rows (lanes). A block of keys is cut into *strips* of 128, which follow one another from the
nearest to the farthest. Within a strip, keys are laid out so that each sublane holds a *run* of 16
consecutive keys, the nearest in the first register and the farthest in the last, and higher
sublanes hold nearer runs. In HBM strips and the keys of a run follow one another as they do in the
sequence, which spares copies: `nearest_first` turns them as a block is read, by whole registers. A
sum over nearer keys is then a sum over registers, one vector operation a register in float32, and
what remains is a scan over the eight runs of a strip. No triangular matrix product is needed, and
none of its rounding. A strip of 128 rows is 16 registers: what has to wait for the scan does so in
registers.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from pallas_kernels.attention.shared.masks import Visibility

SUBLANES = 8
STRIP = 128
RUN = STRIP // SUBLANES
# A padded key has this segment id, and no query has it.
_NO_SEGMENT = -(2**31)
# Columns of the table of a walk.
STOP, COUNT, FULL_LOW, FULL_HIGH = range(4)
COLUMNS = 4


def rows_of_queries(query: jax.Array, groups: int, block: int) -> jax.Array:
    """`[B, Sq, H, ...]` to `[B, G, rows, ...]`."""
    batch, length, heads = query.shape[:3]
    rest = query.shape[3:]
    grouped = query.reshape(batch, length, groups, heads // groups, *rest)
    rows = jnp.swapaxes(grouped, 1, 2).reshape(batch, groups, -1, *rest)
    return fill(rows, 2, block)


def queries_of_rows(rows: jax.Array, length: int, heads: int) -> jax.Array:
    """`[B, G, rows, ...]` back to `[B, Sq, H, ...]`."""
    batch, groups = rows.shape[:2]
    rest = rows.shape[3:]
    repeats = heads // groups
    rows = rows[:, :, : length * repeats].reshape(batch, groups, length, repeats, *rest)
    return jnp.swapaxes(rows, 1, 2).reshape(batch, length, heads, *rest)


def blocks_of_keys(key: jax.Array, block: int) -> jax.Array:
    """`[B, Sk, G, d]` to `[B, G, blocks, block, d]`: the farthest keys of runs first."""
    batch, _, groups, width = key.shape
    key = fill(key, 1, block)
    runs = key.reshape(batch, -1, SUBLANES, RUN, groups, width)
    ordered = jnp.transpose(runs, (0, 4, 1, 3, 2, 5))
    return ordered.reshape(batch, groups, -1, block, width)


def nearest_first(block: jax.Array) -> jax.Array:
    """Keys `[block, d]` from the nearest strip on, and within it from the nearest keys of the runs.

    Two keys of a run stay as they are, because a register of bfloat16 holds both:
    `tile.registers` tells them apart.
    """
    pair = 2 * SUBLANES
    starts = range(block.shape[0] - pair, -1, -pair)
    return jnp.concatenate([block[start : start + pair] for start in starts])


def keys_of_blocks(blocks: jax.Array, length: int) -> jax.Array:
    """`[B, G, blocks, block, d]` back to `[B, Sk, G, d]`."""
    batch, groups, *_, width = blocks.shape
    ordered = blocks.reshape(batch, groups, -1, RUN, SUBLANES, width)
    runs = jnp.transpose(ordered, (0, 2, 4, 3, 1, 5))
    return runs.reshape(batch, -1, groups, width)[:, :length]


def part_of_keys(visibility: Visibility, part: slice) -> Visibility:
    """The visibility of some of the keys, as if there were no others."""
    key_ids, key_mask = visibility.key_segment_ids, visibility.key_mask
    return dataclasses.replace(
        visibility,
        offset=visibility.offset - part.start,
        key_segment_ids=None if key_ids is None else key_ids[:, part],
        key_mask=None if key_mask is None else key_mask[:, part],
    )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Walk:
    """The blocks of keys that each block of rows walks over, and the keys in them that a row sees.

    T stands for B, or 1 if all batch rows are alike; U for G, or 1 if all key/value heads are.

    Attributes:
      table: int32 `[T * U * row blocks * 4]`: the nearest block of keys that the rows may see; how
        many they walk over, down from it; the lowest and highest of a range of blocks in which all
        rows see all keys.
      last: int32 `[1, rows]`, the nearest key that a row sees; below 0 if none.
      first: int32 `[T, U, 1, rows]` or None, the farthest key that a row sees; None is key 0.
      query_ids: int32 `[B, 1, rows]` or None, segment ids.
      key_ids: int32 `[B, blocks, strips, 8, 16]` or None: nearest strips, and nearest keys of the
        runs, first.
    """

    table: jax.Array
    last: jax.Array
    first: jax.Array | None
    query_ids: jax.Array | None
    key_ids: jax.Array | None


def walk(
    visibility: Visibility,
    *,
    query_length: int,
    key_length: int,
    repeats: int,
    query_block: int,
    key_block: int,
    farthest: jax.Array | None = None,
) -> Walk:
    """Returns the walk of all blocks of rows.

    Args:
      visibility: which keys a query sees; `nearest` is no None.
      query_length: number of queries.
      key_length: number of keys.
      repeats: query heads of a key/value head.
      query_block: rows of a block.
      key_block: keys of a block.
      farthest: int32 `[B, G, n]` or None: the first n rows see no farther keys than this one, and
        the others no farther ones than the last of them.
    """
    assert visibility.nearest is not None, "stick-breaking attention sees no future"
    rows = -(-query_length * repeats // query_block) * query_block
    # Rows beyond the last stand where it does.
    index = jnp.minimum(jnp.arange(rows, dtype=jnp.int32) // repeats, query_length - 1)
    position = index + jnp.asarray(visibility.offset, jnp.int32)
    last = jnp.minimum(position - visibility.nearest, key_length - 1)[None]
    first = None
    if visibility.window is not None:
        first = jnp.maximum(position - visibility.window + 1, 0)[None, None, None]
    if farthest is not None:
        filled = _fill_with_edge(farthest, 2, rows)[:, :, None]
        first = filled if first is None else jnp.maximum(first, filled)

    count = -(-key_length // key_block)
    starts = jnp.arange(count, dtype=jnp.int32) * key_block
    by_block = last.reshape(1, 1, -1, 1, query_block)
    # [T, U, row blocks, key blocks]
    met = starts <= by_block.max(-1)
    full = starts + key_block - 1 <= by_block.min(-1)
    if first is not None:
        by_block = first.reshape(*first.shape[:2], -1, 1, query_block)
        met &= starts + key_block - 1 >= by_block.min(-1)
        full &= starts >= by_block.max(-1)
    query_ids, key_ids = _segment_ids(visibility, key_length)
    if query_ids is not None and key_ids is not None:
        query_ids = _fill_with_edge(jnp.repeat(query_ids, repeats, axis=1), 1, rows)
        key_ids = _fill_with_edge(key_ids, 1, count * key_block)
        of_rows = query_ids.reshape(query_ids.shape[0], 1, -1, 1, query_block)
        of_keys = key_ids.reshape(key_ids.shape[0], 1, 1, -1, key_block)
        nearest = jnp.where(of_keys == _NO_SEGMENT, 2**31 - 1, of_keys).min(-1)
        met &= (nearest <= of_rows.max(-1)) & (of_keys.max(-1) >= of_rows.min(-1))
        full &= (of_keys.min(-1) == of_rows.max(-1)) & (of_keys.max(-1) == of_rows.min(-1))
        query_ids = query_ids[:, None]
        key_ids = key_ids.reshape(-1, count, key_block // STRIP, SUBLANES, RUN)
        key_ids = key_ids[:, :, ::-1, :, ::-1]
    return Walk(
        table=_table(met, met & full).reshape(-1),
        last=last,
        first=first,
        query_ids=query_ids,
        key_ids=key_ids,
    )


def reached(walk: Walk, visited: jax.Array, query_block: int, key_block: int) -> jax.Array:
    """The first key of the farthest block that rows visited, int32 `[B, G, rows]`.

    Args:
      walk: of these rows, with no `reached` of its own.
      visited: int32 `[B, G, rows]`, how many blocks of keys rows visited.
      query_block: rows of a block.
      key_block: keys of a block.
    """
    table = walk.table.reshape(-1, 1, visited.shape[2] // query_block, COLUMNS)
    stop = jnp.repeat(table[..., STOP], query_block, axis=2)
    return (stop - visited + 1) * key_block


def _table(met: jax.Array, full: jax.Array) -> jax.Array:
    """The columns of the table `[..., 4]`, from bool `[..., key blocks]`."""
    block = jnp.arange(met.shape[-1], dtype=jnp.int32)
    stop = jnp.where(met, block, -1).max(-1)
    low = jnp.where(met, block, met.shape[-1]).min(-1)
    full_high = jnp.where(full, block, -1).max(-1)
    # Below the highest full block, down to the first that is not.
    broken = ~full & (block <= full_high[..., None])
    full_low = jnp.where(broken, block + 1, 0).max(-1)
    count = jnp.where(stop < 0, 0, stop - low + 1)
    return jnp.stack([stop, count, full_low, full_high], axis=-1).astype(jnp.int32)


def _segment_ids(
    visibility: Visibility, key_length: int
) -> tuple[jax.Array | None, jax.Array | None]:
    """Segment ids of queries and keys in which padded keys have one that no query has."""
    query_ids, key_ids = visibility.query_segment_ids, visibility.key_segment_ids
    mask = visibility.key_mask
    if query_ids is None or key_ids is None:
        if mask is None:
            return None, None
        key_ids = jnp.zeros(mask.shape, jnp.int32)
        query_ids = jnp.zeros((mask.shape[0], 1), jnp.int32)
    query_ids, key_ids = (
        jnp.maximum(ids.astype(jnp.int32), _NO_SEGMENT + 1) for ids in (query_ids, key_ids)
    )
    return query_ids, key_ids if mask is None else jnp.where(mask, key_ids, _NO_SEGMENT)


def fill(x: jax.Array, axis: int, multiple: int) -> jax.Array:
    """Adds zeros at the end of an axis up to a multiple."""
    padding = [(0, 0)] * x.ndim
    padding[axis] = (0, -x.shape[axis] % multiple)
    return jnp.pad(x, padding)


def _fill_with_edge(x: jax.Array, axis: int, size: int) -> jax.Array:
    padding = [(0, 0)] * x.ndim
    padding[axis] = (0, size - x.shape[axis])
    return jnp.pad(x, padding, mode="edge")
