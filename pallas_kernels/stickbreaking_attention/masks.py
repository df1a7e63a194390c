"""Which keys a query sees, for whole arrays and for blocks of them.

Stick-breaking and softmax attention share these rules, so that a model can change one for the other.
Query `i` stands at key index `i + offset`. It sees key `j` if `j` is not in its future, lies in its
window, belongs to its segment and is not padding.
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
      offset: int32 scalar, the key index at which query 0 stands. A Python int is static, and then
        the blocks that a query block has to visit are known when the program is traced.
      query_segment_ids: int `[B, Sq]` or None.
      key_segment_ids: int `[B, Sk]` or None; None exactly if `query_segment_ids` is None.
      key_mask: bool `[B, Sk]` or None; False marks a padded key.
      nearest: the smallest distance `i + offset - j` at which a key is seen: 0 includes the query's
        own position, 1 begins just before it; None does not look at the future at all (every key is
        seen, as in an encoder).
      window: the number of positions, the query's own included, that a query looks back over, or
        None for all of them.
    """

    offset: int | jax.Array
    query_segment_ids: jax.Array | None = None
    key_segment_ids: jax.Array | None = None
    key_mask: jax.Array | None = None
    nearest: int | None = dataclasses.field(default=0, metadata={"static": True})
    window: int | None = dataclasses.field(default=None, metadata={"static": True})

    def mask(self, query_index: jax.Array, key_index: jax.Array) -> jax.Array | None:
        """Returns bool `[B or 1, queries, keys]`, True where the query sees the key; None if all."""
        conditions = []
        distance = query_index[:, None] + self.offset - key_index[None, :]
        if self.nearest is not None:
            conditions.append((distance >= self.nearest)[None])
        if self.window is not None:
            conditions.append((distance < self.window)[None])
        if self.query_segment_ids is not None:
            query_ids = jnp.take(self.query_segment_ids, query_index, axis=1)
            key_ids = jnp.take(self.key_segment_ids, key_index, axis=1)
            conditions.append(query_ids[:, :, None] == key_ids[:, None, :])
        if self.key_mask is not None:
            conditions.append(jnp.take(self.key_mask, key_index, axis=1)[:, None, :])
        if not conditions:
            return None
        seen = conditions[0]
        for condition in conditions[1:]:
            seen = seen & condition
        return seen
