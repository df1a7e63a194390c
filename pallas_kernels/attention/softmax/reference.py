"""Softmax attention written down as its definition says, on whole arrays.

The oracle of the tests: logits and weights are `[B, G, R, Sq, Sk]`, and gradients are JAX's own.
Inputs in float64 are computed in float64.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

from pallas_kernels.attention.shared import blocks
from pallas_kernels.attention.shared.masks import Visibility


def softmax_attention(
    query: Array, key: Array, value: Array, visibility: Visibility, *, scale: float
) -> Array:
    """Returns output `[B, Sq, H, dv]` (see the public op)."""
    query = blocks.fold_heads(query, key.shape[2])
    logits, seen = _logits(query, key, visibility, scale)
    return _output(logits, seen, value)


def softmax_attention_and_log_sum(
    query: Array, key: Array, value: Array, visibility: Visibility, *, scale: float
) -> tuple[Array, Array]:
    """Returns output `[B, Sq, H, dv]` and log-sum-exp `[B, Sq, H]` (see the public op)."""
    logits, seen = _logits(blocks.fold_heads(query, key.shape[2]), key, visibility, scale)
    log_sum = jax.nn.logsumexp(logits, axis=-1, where=seen)
    by_position = jnp.transpose(log_sum, (0, 3, 1, 2)).reshape(query.shape[:-1])
    return _output(logits, seen, value), by_position


def _logits(query: Array, key: Array, visibility: Visibility, scale: float) -> tuple[Array, Array]:
    """Logits `[B, G, R, Sq, Sk]`, as low as can be where a key is not seen, and which are."""
    seen = visibility.seen(0, query.shape[1], 0, key.shape[1])
    seen = jnp.swapaxes(seen, 1, 2)[:, None, None]
    logits = scale * blocks.dot("bigrd,bjgd->bgrij", query, key)
    return jnp.where(seen, logits, jnp.finfo(logits.dtype).min), seen


def _output(logits: Array, seen: Array, value: Array) -> Array:
    weights = jnp.where(seen, jax.nn.softmax(logits, axis=-1), 0)
    output = blocks.dot("bgrij,bjgd->bigrd", weights, value.astype(weights.dtype))
    return blocks.unfold_heads(output).astype(value.dtype)
