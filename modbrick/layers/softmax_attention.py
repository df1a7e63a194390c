"""Softmax attention with the conventions of `pallas_kernels.stickbreaking_attention`.

Computed on whole arrays for now; the signature stands.
array of size `Sq * Sk` is made, forward or backward.
"""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp

from modbrick.errors import InputError
from pallas_kernels.stickbreaking_attention import masks

_HIGHEST = jax.lax.Precision.HIGHEST
_MASKED = -1e30


def softmax_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    *,
    scale: float | None = None,
    causal: bool = True,
    query_segment_ids: jax.Array | None = None,
    key_segment_ids: jax.Array | None = None,
    key_mask: jax.Array | None = None,
    query_offset: int | jax.Array | None = None,
    window: int | None = None,
    implementation: str | None = None,
) -> jax.Array:
    """Returns the output `[B, Sq, H, dv]` of softmax attention, in the dtype of the values."""
    if implementation not in (None, "xla"):
        raise InputError(f"implementation must be 'xla' or None, got {implementation!r}")
    visibility = masks.Visibility(
        offset=key.shape[1] - query.shape[1] if query_offset is None else query_offset,
        query_segment_ids=query_segment_ids,
        key_segment_ids=key_segment_ids,
        key_mask=key_mask,
        nearest=0 if causal else None,
        window=window,
    )
    batch, query_length, heads, width = query.shape
    key_length, groups = key.shape[1:3]
    scale = 1 / math.sqrt(width) if scale is None else scale
    seen = visibility.mask(jnp.arange(query_length), jnp.arange(key_length))
    grouped = query.reshape(batch, query_length, groups, heads // groups, -1)
    logits = scale * jnp.einsum(
        "bigrd,bjgd->bgrij", grouped, key, precision=_HIGHEST, preferred_element_type=jnp.float32
    )
    if seen is not None:
        logits = jnp.where(seen[:, None, None], logits, _MASKED)
    weights = jax.nn.softmax(logits, axis=-1)
    if seen is not None:
        weights = jnp.where(seen[:, None, None], weights, 0)
    output = jnp.einsum("bgrij,bjgd->bigrd", weights.astype(value.dtype), value, precision=_HIGHEST)
    return output.reshape(batch, query_length, heads, -1)
