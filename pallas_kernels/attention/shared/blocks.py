"""Blocks of queries and keys: how a blockwise attention cuts them out and walks over them.

A block of queries holds the heads that share a key/value head as further rows, so that grouped
queries make larger matrix products. Tiles of queries and keys are *key-major*, `[B, G, K, Q]`: sums
along the keys are then sums of whole vectors of queries.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from pallas_kernels.attention.shared.block_sizes import BlockSizes
from pallas_kernels.attention.shared.masks import Visibility


def dot(subscripts: str, x: jax.Array, y: jax.Array) -> jax.Array:
    """Einsum in the accuracy of its inputs, accumulated in float32 at least."""
    return jnp.einsum(
        subscripts,
        x,
        y,
        precision=jax.lax.Precision.HIGHEST,
        preferred_element_type=accumulation_dtype(x),
    )


def masked_exp(logits: jax.Array, seen: jax.Array, largest: float) -> jax.Array:
    """`exp(min(logits, largest))` where the key is seen, else 0, whatever the logit is.

    The mask is computed beforehand: in the same loop it would keep XLA from vectorising the
    exponential on CPU.
    """
    seen = jax.lax.optimization_barrier(seen)
    exponent = jnp.where(seen, jnp.minimum(logits, largest), -jnp.inf)
    return jax.lax.optimization_barrier(jnp.exp(exponent))


def as_one_query_sees(
    keys: jax.Array, values: jax.Array, seen: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Keys and values of a tile `[B, G, K, Q]` whose queries are one: NaN where not finite.

    Values that it does not see are 0; keys are masked as logits. For more queries see
    `containment`, which looks at all keys beforehand: for one that would take longer than attention
    to them.
    """
    return nan_if_not_finite(keys), jnp.where(seen[..., :1], nan_if_not_finite(values), 0)


def nan_if_not_finite(x: jax.Array) -> jax.Array:
    """NaN in place of infinity."""
    return jnp.where(jnp.isfinite(x), x, jnp.nan).astype(x.dtype)


def accumulation_dtype(array: jax.Array) -> jnp.dtype:
    """float32, or float64 for float64."""
    return jnp.promote_types(array.dtype, jnp.float32)


def fold_heads(array: jax.Array, groups: int) -> jax.Array:
    """`[B, S, H, ...]` as `[B, S, G, H // G, ...]`."""
    batch, length, heads, *rest = array.shape
    return array.reshape(batch, length, groups, heads // groups, *rest)


def unfold_heads(array: jax.Array) -> jax.Array:
    """The inverse of `fold_heads`."""
    batch, length, groups, repeats, *rest = array.shape
    return array.reshape(batch, length, groups * repeats, *rest)


def read_queries(array: jax.Array, start: jax.Array, size: int) -> jax.Array:
    """Queries `[B, S, G, R, ...]` from `start` on as rows `[B, G, R * size, ...]`."""
    block = jax.lax.dynamic_slice_in_dim(array, start, size, axis=1)
    block = jnp.moveaxis(block, 1, 3)
    batch, groups, repeats, size, *rest = block.shape
    return block.reshape(batch, groups, repeats * size, *rest)


def write_queries(array: jax.Array, rows: jax.Array, start: jax.Array) -> jax.Array:
    """Puts rows `[B, G, R * size, ...]` at their place in `[B, S, G, R, ...]`."""
    batch, _, groups, repeats, *rest = array.shape
    block = rows.reshape(batch, groups, repeats, -1, *rest)
    block = jnp.moveaxis(block, 3, 1).astype(array.dtype)
    return jax.lax.dynamic_update_slice_in_dim(array, block, start, axis=1)


def add_queries(array: jax.Array, rows: jax.Array, start: jax.Array) -> jax.Array:
    """Adds rows `[B, G, R * size, ...]` to their place in `[B, S, G, R, ...]`."""
    size = rows.shape[2] // array.shape[3]
    return write_queries(array, read_queries(array, start, size) + rows, start)


def read_keys(array: jax.Array, start: jax.Array, size: int) -> jax.Array:
    """Keys or values `[B, S, G, d]` from `start` on as `[B, G, size, d]`."""
    return jnp.swapaxes(jax.lax.dynamic_slice_in_dim(array, start, size, axis=1), 1, 2)


def add_keys(array: jax.Array, block: jax.Array, start: jax.Array) -> jax.Array:
    """Adds `[B, G, size, d]` to its place in the accumulator `[B, G, S, d]`."""
    old = jax.lax.dynamic_slice_in_dim(array, start, block.shape[2], axis=2)
    return jax.lax.dynamic_update_slice_in_dim(array, old + block, start, axis=2)


def one_head_at_a_time(
    body: Callable[..., tuple[jax.Array, jax.Array, jax.Array]],
    visibility: Visibility,
    *arrays: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Runs `body(*arrays, visibility)` for each element of the batch and key/value head by itself.

    Arrays are `[B, S, G, ...]`, or `[B, G, n]` if they have three axes; results alike. In `body`,
    `B` and `G` are 1.
    """
    batch, groups = arrays[0].shape[0], arrays[0].shape[2]

    def one(index: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        row, group = index // groups, index % groups
        own = [_one_head(array, row, group) for array in arrays]
        rules = dataclasses.replace(
            visibility,
            query_segment_ids=_row(visibility.query_segment_ids, row),
            key_segment_ids=_row(visibility.key_segment_ids, row),
            key_mask=_row(visibility.key_mask, row),
        )
        return body(*own, rules)

    first, second, third = jax.lax.map(one, jnp.arange(batch * groups))
    return (
        _all_heads(first, batch, groups),
        _all_heads(second, batch, groups),
        _all_heads(third, batch, groups),
    )


def _one_head(array: jax.Array, row: jax.Array, group: jax.Array) -> jax.Array:
    array = jax.lax.dynamic_slice_in_dim(array, row, 1, axis=0)
    return jax.lax.dynamic_slice_in_dim(array, group, 1, axis=1 if array.ndim == 3 else 2)


def _row(array: jax.Array | None, row: jax.Array) -> jax.Array | None:
    return None if array is None else jax.lax.dynamic_slice_in_dim(array, row, 1)


def _all_heads(array: jax.Array, batch: int, groups: int) -> jax.Array:
    """Undoes `_one_head`: the first axis of `array` runs over batch and heads."""
    if array.ndim == 4:
        return array.reshape(batch, groups, -1)
    array = array.reshape(batch, groups, array.shape[2], *array.shape[4:])
    return jnp.moveaxis(array, 1, 2)


def walk_queries[Carry](
    body: Callable[[jax.Array, jax.Array, Carry], Carry],
    carry: Carry,
    query_length: int,
    sizes: BlockSizes,
) -> Carry:
    """Runs `body(start, fresh, carry)` for each block of queries.

    The last block is moved back to end with the queries, so that nothing need be padded: `fresh`,
    bool `[size]`, says which of its queries were not in the block before.
    """

    def step(index: jax.Array, carry: Carry) -> Carry:
        start = jnp.minimum(index * sizes.query, query_length - sizes.query)
        fresh = start + jnp.arange(sizes.query) >= index * sizes.query
        return body(start, fresh, carry)

    return jax.lax.fori_loop(0, -(-query_length // sizes.query), step, carry)


def walk_keys[Carry](
    body: Callable[[jax.Array, jax.Array, Carry], Carry],
    carry: Carry,
    visibility: Visibility,
    query_start: jax.Array,
    key_length: int,
    repeats: int,
    sizes: BlockSizes,
    *,
    most: jax.Array | None = None,
) -> Carry:
    """Runs `body(start, seen, carry)` for each block of keys that the queries see, nearest first.

    `seen` is bool `[B or 1, 1, K, Q]` over the tile. Blocks out of sight are never visited. They
    are cut from the nearest key backwards; one that would begin before key 0 is moved to begin
    there, and the keys that the block before it held are not seen in it. At most `most` blocks are
    visited, if given.
    """
    step, count = _key_steps(body, visibility, query_start, key_length, repeats, sizes)
    if most is not None:
        count = jnp.minimum(count, most)
    return jax.lax.fori_loop(0, count, step, carry)


def walk_keys_while[Carry](
    unfinished: Callable[[Carry], jax.Array],
    body: Callable[[jax.Array, jax.Array, Carry], Carry],
    carry: Carry,
    visibility: Visibility,
    query_start: jax.Array,
    key_length: int,
    repeats: int,
    sizes: BlockSizes,
) -> tuple[Carry, jax.Array]:
    """Like `walk_keys`, as long as `unfinished(carry)`; also returns how many blocks it visited."""
    step, count = _key_steps(body, visibility, query_start, key_length, repeats, sizes)

    def goes_on(state: tuple[jax.Array, Carry]) -> jax.Array:
        index, carry = state
        return (index < count) & unfinished(carry)

    def advance(state: tuple[jax.Array, Carry]) -> tuple[jax.Array, Carry]:
        index, carry = state
        return index + 1, step(index, carry)

    index, carry = jax.lax.while_loop(goes_on, advance, (jnp.zeros_like(count), carry))
    return carry, index


def _key_steps[Carry](
    body: Callable[[jax.Array, jax.Array, Carry], Carry],
    visibility: Visibility,
    query_start: jax.Array,
    key_length: int,
    repeats: int,
    sizes: BlockSizes,
) -> tuple[Callable[[jax.Array, Carry], Carry], jax.Array]:
    """Returns the step to the block of keys with an index, and how many blocks are in sight."""
    _, stop = visibility.key_range(query_start, sizes.query, key_length)

    def step(index: jax.Array, carry: Carry) -> Carry:
        end = stop - index * sizes.key
        start = jnp.maximum(end - sizes.key, 0)
        seen = visibility.seen(query_start, sizes.query, start, sizes.key)
        seen &= (start + jnp.arange(sizes.key) < end)[:, None]
        seen = jnp.broadcast_to(seen[:, :, None], (*seen.shape[:2], repeats, sizes.query))
        return body(start, seen.reshape(seen.shape[0], 1, sizes.key, -1), carry)

    return step, blocks_in_sight(visibility, query_start, key_length, sizes)


def blocks_in_sight(
    visibility: Visibility, query_start: jax.Array, key_length: int, sizes: BlockSizes
) -> jax.Array:
    """Counts the blocks of keys that a block of queries may see."""
    low, stop = visibility.key_range(query_start, sizes.query, key_length)
    return jnp.maximum(stop - low + sizes.key - 1, 0) // sizes.key
