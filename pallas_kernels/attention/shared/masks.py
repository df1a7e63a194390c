"""Rules for which keys a query sees, for blocks of both.

Stick-breaking and softmax attention share these rules, so that a model can change one for the
other. Query `i` stands at key index `i + offset`. It sees key `j` if `j` is not in its future, lies
in its window, belongs to its segment and is not padding.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Visibility:
    """The rules by which queries see keys.

    Attributes:
      offset: the key index at which query 0 stands, an int or an int32 scalar array.
      query_segment_ids: int `[B, Sq]` or None.
      key_segment_ids: int `[B, Sk]`; None exactly if `query_segment_ids` is None.
      key_mask: bool `[B, Sk]` or None; False marks a padded key.
      nearest: the smallest distance `i + offset - j` at which a key is seen: 0 includes the key at
        the query's own position, 1 begins just before it; None: the future is seen too.
      window: how many positions, its own included, a query looks back over; None: all of them.
    """

    offset: int | jax.Array
    query_segment_ids: jax.Array | None = None
    key_segment_ids: jax.Array | None = None
    key_mask: jax.Array | None = None
    nearest: int | None = dataclasses.field(default=0, metadata={"static": True})
    window: int | None = dataclasses.field(default=None, metadata={"static": True})

    def key_range(
        self, query_start: int | jax.Array, query_size: int, key_length: int
    ) -> tuple[jax.Array, jax.Array]:
        """Returns the first key that a block of queries may see, and the one past the last."""
        position = query_start + self.offset
        start: int | jax.Array = 0
        stop: int | jax.Array = key_length
        if self.window is not None:
            start = position - self.window + 1
        if self.nearest is not None:
            stop = position + query_size - self.nearest
        return jnp.clip(start, 0, key_length), jnp.clip(stop, 0, key_length)

    def seen(
        self,
        query_start: int | jax.Array,
        query_size: int,
        key_start: int | jax.Array,
        key_size: int,
    ) -> jax.Array:
        """Returns bool `[B or 1, key_size, query_size]`: the key (first) is seen by the query."""
        query_index = query_start + jnp.arange(query_size)
        key_index = key_start + jnp.arange(key_size)
        distance = query_index[None, :] + self.offset - key_index[:, None]
        seen = jnp.ones((1, key_size, query_size), bool)
        if self.nearest is not None:
            seen &= distance >= self.nearest
        if self.window is not None:
            seen &= distance < self.window
        if self.query_segment_ids is not None and self.key_segment_ids is not None:
            query_ids = _columns(self.query_segment_ids, query_start, query_size)
            key_ids = _columns(self.key_segment_ids, key_start, key_size)
            seen &= query_ids[:, None, :] == key_ids[:, :, None]
        if self.key_mask is not None:
            seen &= _columns(self.key_mask, key_start, key_size)[:, :, None]
        return seen


def _columns(array: jax.Array, start: int | jax.Array, size: int) -> jax.Array:
    return jax.lax.dynamic_slice_in_dim(array, start, size, axis=1)
