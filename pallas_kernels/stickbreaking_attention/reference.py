"""Stick-breaking attention written down as its definition says, on whole arrays.

The oracle of the tests: every intermediate is `[B, G, R, Sq, Sk]`, and gradients are JAX's own.
Inputs in float64 are computed in float64.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from pallas_kernels.stickbreaking_attention.masks import Visibility


def stickbreaking_attention(
    query: jax.Array, key: jax.Array, value: jax.Array, visibility: Visibility, *, scale: float
) -> tuple[jax.Array, jax.Array]:
    """Returns output `[B, Sq, H, dv]` and remainder `[B, Sq, H]` (see the public op)."""
    batch, query_length, heads, _ = query.shape
    key_length, groups = key.shape[1:3]
    accumulation = jnp.promote_types(query.dtype, jnp.float32)
    grouped = query.reshape(batch, query_length, groups, heads // groups, -1)
    logits = scale * jnp.einsum(
        "bigrd,bjgd->bgrij",
        grouped,
        key,
        precision=jax.lax.Precision.HIGHEST,
        preferred_element_type=accumulation,
    )
    seen = jnp.swapaxes(visibility.seen(0, query_length, 0, key_length), 1, 2)[:, None, None]
    # A key that is not seen is given a harmless logit, so that no gradient passes through it.
    logits = jnp.where(seen, logits, 0.0)
    log_break = jnp.where(seen, jax.nn.log_sigmoid(logits), -jnp.inf)
    log_keep = jnp.where(seen, jax.nn.log_sigmoid(-logits), 0.0)
    log_kept = jax.lax.cumsum(log_keep, axis=log_keep.ndim - 1, reverse=True)
    log_left = jnp.concatenate([log_kept[..., 1:], jnp.zeros_like(log_kept[..., :1])], axis=-1)
    weights = jnp.exp(log_break + log_left)
    output = jnp.einsum(
        "bgrij,bjgd->bigrd",
        weights,
        value.astype(accumulation),
        precision=jax.lax.Precision.HIGHEST,
    )
    output = output.reshape(batch, query_length, heads, -1).astype(value.dtype)
    remainder = jnp.exp(log_kept[..., 0]) if key_length else jnp.ones(log_kept.shape[:-1])
    remainder = jnp.transpose(remainder, (0, 3, 1, 2)).reshape(batch, query_length, heads)
    return output, remainder
