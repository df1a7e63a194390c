"""The key-value cache of a decoder: what earlier calls computed of the sequence so far."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from modbrick.config import ModelConfig


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SegmentCache:
    """Keys and values of a segment's layers, `[L, B, C, G, W]` for a capacity of C tokens."""

    keys: Float[Array, "L B C G W"]
    values: Float[Array, "L B C G W"]

    def write(
        self,
        layer: Int[Array, ""],
        offset: Int[Array, ""] | int,
        keys: Float[Array, "B S G W"],
        values: Float[Array, "B S G W"],
    ) -> tuple[SegmentCache, Float[Array, "B C G W"], Float[Array, "B C G W"]]:
        """Stores one layer's new keys and values from `offset` on.

        Returns:
          The new cache, and that layer's keys and values so far (zeros where none are yet).
        """
        start = (layer, 0, offset, 0, 0)
        new = SegmentCache(
            jax.lax.dynamic_update_slice(self.keys, keys[None].astype(self.keys.dtype), start),
            jax.lax.dynamic_update_slice(
                self.values, values[None].astype(self.values.dtype), start
            ),
        )
        return new, new.keys[layer], new.values[layer]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cache:
    """A decoder's cache for B sequences of up to C tokens.

    Attributes:
      segments: keys and values, by segment index as text.
      mask: entries that hold a real token (padding takes an entry but is never attended to).
      segment_ids: the document of each entry; zeros where the caller named none.
      length: entries written so far, the same for every sequence.

    Examples:
        >>> import jax.numpy as jnp
        >>> import modbrick
        >>> model = modbrick.load_model("run")
        >>> tokens = jnp.asarray([[1, 2, 3, 4]])
        >>> cache = modbrick.Cache.empty(model.config, batch=1, capacity=16)
        >>> before = model(tokens[:, :3], cache=cache)  # the prompt
        >>> after = model(tokens[:, 3:], cache=before.cache)  # its next token alone
        >>> after.logits.shape, int(after.cache.length)
        ((1, 1, 256), 4)
    """

    segments: Mapping[str, SegmentCache]
    mask: Bool[Array, "B C"]
    segment_ids: Int[Array, "B C"]
    length: Int[Array, ""]

    @classmethod
    def empty(cls, config: ModelConfig, batch: int, capacity: int) -> Cache:
        """Returns a cache that holds nothing, in the model's dtype."""
        segments = {}
        for index, segment in enumerate(config.segments):
            attention = segment.layer.attention
            shape = (
                segment.repeats,
                batch,
                capacity,
                attention.grouped_heads,
                attention.head_width,
            )
            zeros = jnp.zeros(shape, config.dtype)
            segments[str(index)] = SegmentCache(zeros, zeros)
        return cls(
            segments,
            jnp.zeros((batch, capacity), bool),
            jnp.zeros((batch, capacity), jnp.int32),
            jnp.zeros((), jnp.int32),
        )

    @property
    def capacity(self) -> int:
        """Tokens that fit, C."""
        return self.mask.shape[1]

    def append(
        self, mask: Bool[Array, "B S"], segment_ids: Int[Array, "B S"] | None
    ) -> tuple[Bool[Array, "B C"], Int[Array, "B C"]]:
        """Returns the mask and segment ids of all entries once these S tokens are written."""
        if segment_ids is None:
            segment_ids = jnp.zeros(mask.shape, jnp.int32)
        start = (0, self.length)
        return (
            jax.lax.dynamic_update_slice(self.mask, mask, start),
            jax.lax.dynamic_update_slice(self.segment_ids, segment_ids.astype(jnp.int32), start),
        )
