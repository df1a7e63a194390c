"""Who sees a marked key, and whom a marked query sees; by the rules of `Visibility`.

Without segment ids the keys in sight of a query are a range that moves with it, and a running
maximum answers for all of them at once. With ids, pairs are looked at block by block.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from pallas_kernels.attention.shared.masks import Visibility

# Keys whose pairs with all queries are looked at together.
_BLOCK = 32


def queries_that_see(
    marks: jax.Array, visibility: Visibility, query_length: int, first: jax.Array | None = None
) -> jax.Array:
    """Returns which queries see any marked key, bool `[B, Sq, C]`.

    Args:
      marks: bool `[B, Sk, C]`, of the keys; C of them are asked about apart from each other.
      visibility: which keys a query sees.
      query_length: Sq.
      first: int32 `[B, Sq, C]`, a further limit: the first key that a query may see; or None.
    """
    key_length = marks.shape[1]
    if visibility.key_segment_ids is not None:

        def look(index: jax.Array, found: jax.Array) -> jax.Array:
            start, seen = _block(index, visibility, query_length, key_length, first)
            own = jax.lax.dynamic_slice_in_dim(marks, start, seen.shape[1], axis=1)
            return found | jnp.any(seen & own[:, :, None], axis=1)

        found = jnp.zeros((marks.shape[0], query_length, marks.shape[2]), bool)
        return jax.lax.fori_loop(0, -(-key_length // _BLOCK), look, found)
    if visibility.key_mask is not None:
        marks = marks & visibility.key_mask[:, :, None]
    index = jnp.arange(key_length, dtype=jnp.int32)[:, None]
    # The nearest marked key up to each.
    nearest = jax.lax.cummax(jnp.where(marks, index, -1), axis=1)
    if visibility.nearest is None:
        nearest = nearest[:, -1:]
    else:
        nothing = jnp.full_like(nearest[:, :1], -1)
        start = visibility.offset - visibility.nearest
        nearest = _window(nearest, start, query_length, nothing, nearest[:, -1:])
    return nearest >= _first(visibility, query_length, first)


def keys_seen_by(
    marks: jax.Array, visibility: Visibility, key_length: int, first: jax.Array | None = None
) -> jax.Array:
    """Returns which keys any marked query sees, bool `[B, Sk, C]`.

    Args:
      marks: bool `[B, Sq, C]`, of the queries.
      visibility: see `queries_that_see`.
      key_length: Sk.
      first: see `queries_that_see`.
    """
    query_length = marks.shape[1]
    if visibility.key_segment_ids is not None:

        def look(index: jax.Array, found: jax.Array) -> jax.Array:
            start, seen = _block(index, visibility, query_length, key_length, first)
            own = jnp.any(seen & marks[:, None], axis=2)
            return jax.lax.dynamic_update_slice_in_dim(found, own, start, axis=1)

        found = jnp.zeros((marks.shape[0], key_length, marks.shape[2]), bool)
        return jax.lax.fori_loop(0, -(-key_length // _BLOCK), look, found)
    # How far back any marked query from each on looks.
    far = jnp.where(marks, _first(visibility, query_length, first), key_length)
    far = jax.lax.cummin(far, axis=1, reverse=True)
    if visibility.nearest is None:
        far = far[:, :1]
    else:
        nothing = jnp.full_like(far[:, :1], key_length)
        start = visibility.nearest - visibility.offset
        far = _window(far, start, key_length, far[:, :1], nothing)
    seen = far <= jnp.arange(key_length, dtype=jnp.int32)[:, None]
    return seen if visibility.key_mask is None else seen & visibility.key_mask[:, :, None]


def _first(visibility: Visibility, query_length: int, first: jax.Array | None) -> jax.Array:
    """The first key that queries may see, from 0 on; int32 `[B or 1, Sq, C or 1]`."""
    limit = jnp.zeros((1, query_length, 1), jnp.int32) if first is None else jnp.maximum(first, 0)
    if visibility.window is None:
        return limit
    position = jnp.arange(query_length, dtype=jnp.int32) + visibility.offset
    return jnp.maximum(limit, (position - visibility.window + 1)[:, None])


def _window(
    x: jax.Array, start: int | jax.Array, size: int, before: jax.Array, after: jax.Array
) -> jax.Array:
    """`x[:, start : start + size]` `[B, size, C]`; `before` and `after` where there is nothing."""
    batch, length, count = x.shape
    ends = [jnp.broadcast_to(end, (batch, size, count)) for end in (before, after)]
    padded = jnp.concatenate([ends[0], x, ends[1]], axis=1)
    start = jnp.clip(start + size, 0, length + size)
    return jax.lax.dynamic_slice_in_dim(padded, start, size, axis=1)


def _block(
    index: jax.Array,
    visibility: Visibility,
    query_length: int,
    key_length: int,
    first: jax.Array | None,
) -> tuple[jax.Array, jax.Array]:
    """The first key of a block, and which of its keys queries see, `[B, K, Sq, C or 1]`."""
    size = min(_BLOCK, key_length)
    start = jnp.minimum(index * size, key_length - size)
    seen = visibility.seen(0, query_length, start, size)[..., None]
    if first is not None:
        keys = start + jnp.arange(size, dtype=jnp.int32)
        seen = seen & (keys[:, None, None] >= first[:, None])
    return start, seen
