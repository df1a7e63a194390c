"""Attention weights of every query-key pair, for looking at small inputs."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from modbrick.config import AttentionConfig
from modbrick.layers.context import Visibility


def attention_weights(
    config: AttentionConfig,
    query: Float[Array, "B S N W"],
    key: Float[Array, "B C G W"],
    visibility: Visibility,
) -> Float[Array, "B N S C"]:
    """Returns the weight of each key for each query, float32; of a document's own keys alone.

    Stick-breaking: A_ij = sigmoid(z_ij) prod_{l > j} (1 - sigmoid(z_il)) over visible keys (arXiv
    2410.17980, section 2); softmax: the softmax over visible keys, zeros where none is visible.
    """
    batch, sequence, heads, width = query.shape
    groups = key.shape[2]
    grouped = query.reshape(batch, sequence, groups, heads // groups, width).astype(jnp.float32)
    scale = width**-0.5 if config.scale is None else config.scale
    logits = scale * jnp.einsum(
        "bsghw,bcgw->bghsc", grouped, key.astype(jnp.float32), precision=jax.lax.Precision.HIGHEST
    )
    distance = (jnp.arange(sequence) + visibility.offset)[:, None] - jnp.arange(key.shape[1])
    visible = distance >= (0 if config.attend_current else 1)
    if config.window is not None:
        visible &= distance < config.window
    visible = visible[None]
    queries_of, keys_of = visibility.query_segment_ids, visibility.key_segment_ids
    if queries_of is not None and keys_of is not None:
        visible &= queries_of[:, :, None] == keys_of[:, None]
    if visibility.key_mask is not None:
        visible &= visibility.key_mask[:, None]
    visible = visible[:, None, None]
    if config.kind == "softmax":
        weights = jax.nn.softmax(logits, axis=-1, where=visible)
        weights = jnp.where(visible, weights, 0.0)
    else:
        passed = jnp.where(visible, -jax.nn.softplus(logits), 0.0)
        nearer = jax.lax.cumsum(passed, axis=4, reverse=True) - passed
        weights = jnp.where(visible, jnp.exp(jax.nn.log_sigmoid(logits) + nearer), 0.0)
    return weights.reshape(batch, heads, sequence, key.shape[1])
