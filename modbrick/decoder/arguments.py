"""Arguments of a call of the decoder: checked, counted and spread over its tokens."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from modbrick.errors import InputError
from modbrick.layers.cache import Cache
from modbrick.parallel.choice import Choice

BrickIds = Int[Array, "B"] | Int[Array, "B S"] | Int[Array, "B S K"]
"""Bricks that each example, each token uses, or which several; -1 none."""


def check_values(tokens: Int[Array, "B S"], vocabulary: int, cache: Cache | None) -> None:
    """Refuses ids and lengths out of range, where they are known; lookups would clamp them."""
    if not isinstance(tokens, jax.core.Tracer) and tokens.size:
        # By numpy: a constant inside a traced function must stay one.
        least, largest = np.asarray(tokens).min(), np.asarray(tokens).max()
        if least < 0 or largest >= vocabulary:
            raise InputError(
                f"token ids from {least} to {largest} do not fit a vocabulary of {vocabulary}"
            )
    if cache is not None and not isinstance(cache.length, jax.core.Tracer):
        needed = int(np.asarray(cache.length)) + tokens.shape[1]
        if needed > cache.capacity:
            raise InputError(f"{needed} tokens do not fit a cache of {cache.capacity}")


def count_positions(
    tokens: Int[Array, "B S"], mask: Bool[Array, "B S"] | None, cache: Cache | None
) -> Int[Array, "B S"]:
    """Counts real tokens from 0, on from those in the cache."""
    if mask is None:
        counts = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    else:
        counts = jnp.maximum(jnp.cumsum(mask, axis=1) - 1, 0)
    if cache is not None:
        counts = counts + cache.mask.sum(1, keepdims=True)
    return counts.astype(jnp.int32)


def spread(
    ids: BrickIds | None, weights: Float[Array, "B S K"] | None, tokens: Array
) -> Choice | None:
    """Spreads ids and weights given per example over its tokens `[B, S, ...]`."""
    if ids is None:
        return None
    ids = jnp.asarray(ids)
    ids = ids.reshape(*ids.shape, *(1,) * (3 - ids.ndim))
    shape = (*tokens.shape[:2], ids.shape[-1])
    if weights is not None:
        weights = jnp.broadcast_to(weights, shape)
    return Choice(jnp.broadcast_to(ids, shape), weights)
