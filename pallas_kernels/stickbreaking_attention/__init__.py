"""Stick-breaking attention (Tan et al., arXiv 2410.17980), exact, in memory linear in the length."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels.stickbreaking_attention import reference, xla
from pallas_kernels.stickbreaking_attention.implementations import (
    IMPLEMENTATIONS,
    selected_implementation,
)
from pallas_kernels.stickbreaking_attention.masks import Visibility

__all__ = [
    "IMPLEMENTATIONS",
    "StickbreakingOutput",
    "selected_implementation",
    "stickbreaking_attention",
]


class StickbreakingOutput(NamedTuple):
    """What stick-breaking attention returns.

    Attributes:
      output: `[B, Sq, H, dv]` in the dtype of the values.
      remainder: float32 `[B, Sq, H]`, the part of the stick that no key took.
    """

    output: jax.Array
    remainder: jax.Array


def stickbreaking_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    *,
    scale: float | None = None,
    attend_current: bool = False,
    query_segment_ids: jax.Array | None = None,
    key_segment_ids: jax.Array | None = None,
    key_mask: jax.Array | None = None,
    query_offset: int | jax.Array | None = None,
    window: int | None = None,
    implementation: str | None = None,
) -> StickbreakingOutput:
    """Attention in which each key, the nearest first, takes its part of what is left of a stick.

    With `z[i, j] = scale * query[i] . key[j]` and `beta = sigmoid(z)`, key `j` gets the weight
    `A[i, j] = beta[i, j] * prod_l (1 - beta[i, l])`, the product over all seen keys `l` nearer than
    `j`. The weights sum to `1 - remainder`. There is no position embedding in it: nearness is what
    orders the keys. (Tan et al., arXiv 2410.17980; `attend_current=True` is the form of ModuleFormer,
    Shen et al., arXiv 2306.04640.)

    Output and remainder are differentiable with respect to query, key and value. Sums of logarithms
    are float32 whatever the dtype, results are deterministic and finite for finite logits of any
    size, and no array of size `Sq * Sk` is ever made (except by `implementation="reference"`).

    Args:
      query: `[B, Sq, H, d]`, float32, bfloat16 or float16 (float64 only with "reference").
      key: `[B, Sk, G, d]`. H is a multiple of G; query head `h` reads key/value head `h // (H // G)`.
      value: `[B, Sk, G, dv]`.
      scale: factor of the logits; None is `1 / sqrt(d)`.
      attend_current: whether a query sees the key at its own position (`j <= i + offset`) or only
        those before it (`j < i + offset`).
      query_segment_ids: int `[B, Sq]`, together with `key_segment_ids`: a query sees only keys of its
        own segment; the others take no stick.
      key_segment_ids: int `[B, Sk]`.
      key_mask: bool `[B, Sk]`; a key with False is padding: it takes no stick and passes all of it on.
      query_offset: the key index at which query 0 stands, an int or an integer scalar array (traced,
        say, in a decoding step); None is `Sk - Sq`, so that the last query stands at the last key.
      window: keys more than `window - 1` positions back take no stick; None is no limit.
      implementation: a name of `IMPLEMENTATIONS`; None picks the best that can run (ask
        `selected_implementation`).

    Returns:
      A `StickbreakingOutput`. A query that sees no key has output 0 and remainder 1.

    Raises:
      ValueError: shapes or dtypes do not fit together, or the implementation cannot run; the message
        names the argument.
    """
    _check(query, key, value, query_segment_ids, key_segment_ids, key_mask, query_offset, window)
    name = selected_implementation(implementation)
    if scale is None:
        scale = 1.0 / math.sqrt(query.shape[-1])
    visibility = Visibility(
        offset=key.shape[1] - query.shape[1] if query_offset is None else query_offset,
        query_segment_ids=query_segment_ids,
        key_segment_ids=key_segment_ids,
        key_mask=key_mask,
        nearest=0 if attend_current else 1,
        window=window,
    )
    run = {"reference": reference, "xla": xla}[name].stickbreaking_attention
    return StickbreakingOutput(*run(query, key, value, visibility, scale=float(scale)))


def _check(query, key, value, query_ids, key_ids, key_mask, query_offset, window) -> None:
    shapes = f"query {query.shape}, key {key.shape}, value {value.shape}"
    if not query.ndim == key.ndim == value.ndim == 4:
        raise ValueError(f"query, key and value must be [B, S, heads, width], got {shapes}")
    if not query.dtype == key.dtype == value.dtype or not jnp.issubdtype(query.dtype, jnp.floating):
        raise ValueError(
            "query, key and value must share one floating dtype, got "
            f"query {query.dtype}, key {key.dtype}, value {value.dtype}"
        )
    batch, query_length, heads, width = query.shape
    key_batch, key_length, groups, key_width = key.shape
    if key.shape[:3] != value.shape[:3]:
        raise ValueError(f"key and value must agree in batch, length and heads, got {shapes}")
    if batch != key_batch:
        raise ValueError(f"query and key must have the same batch size, got {shapes}")
    if width != key_width:
        raise ValueError(f"query and key must have the same width, got {shapes}")
    if groups == 0 or heads % groups:
        raise ValueError(f"the query heads must be a multiple of the key heads, got {shapes}")
    if (query_ids is None) != (key_ids is None):
        missing = "query_segment_ids" if query_ids is None else "key_segment_ids"
        raise ValueError(f"segment ids are needed for queries and keys: {missing} is missing")
    for name, array, length, kind in (
        ("query_segment_ids", query_ids, query_length, jnp.integer),
        ("key_segment_ids", key_ids, key_length, jnp.integer),
        ("key_mask", key_mask, key_length, jnp.bool_),
    ):
        if array is None:
            continue
        if array.shape != (batch, length):
            raise ValueError(f"{name} must be {(batch, length)}, got {array.shape} with {shapes}")
        if not jnp.issubdtype(array.dtype, kind):
            raise ValueError(f"{name} must be {kind.__name__}, got {array.dtype}")
    if query_offset is not None and (
        jnp.ndim(query_offset) or not jnp.issubdtype(jnp.result_type(query_offset), jnp.integer)
    ):
        raise ValueError(f"query_offset must be an integer scalar, got {query_offset!r}")
    if window is not None and window < 1:
        raise ValueError(f"window must be at least 1, got {window}")
