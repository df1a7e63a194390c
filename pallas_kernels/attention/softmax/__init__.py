"""Softmax attention with the conventions of `pallas_kernels.stickbreaking_attention`.

Example:
    >>> import jax.numpy as jnp
    >>> from pallas_kernels.softmax_attention import softmax_attention
    >>> tokens = jnp.arange(3.0).reshape(1, 3, 1, 1)
    >>> softmax_attention(jnp.zeros_like(tokens), tokens, tokens)[0, :, 0, 0]
    Array([0. , 0.5, 1. ], dtype=float32)
"""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

from jaxtyping import Array, Bool, Float, Int

from pallas_kernels.attention.shared.arguments import check_arguments
from pallas_kernels.attention.shared.case import Case
from pallas_kernels.attention.shared.masks import Visibility
from pallas_kernels.attention.softmax.implementations import (
    IMPLEMENTATIONS,
    REGISTRY,
    available_implementations,
    choose_implementation,
)

__all__ = [
    "IMPLEMENTATIONS",
    "Case",
    "SoftmaxOutput",
    "available_implementations",
    "choose_implementation",
    "softmax_attention",
    "softmax_attention_and_log_sum",
]


class SoftmaxOutput(NamedTuple):
    """Results of softmax attention with the sum that it divided by.

    Attributes:
      output: `[B, Sq, H, dv]` in the dtype of the values.
      log_sum: float32 `[B, Sq, H]`, the logarithm of the sum of `exp(logit)` over the keys that a
        query sees; minus infinity for one that sees none.
    """

    output: Array
    log_sum: Array


def softmax_attention(
    query: Float[Array, "B Sq H d"],
    key: Float[Array, "B Sk G d"],
    value: Float[Array, "B Sk G dv"],
    *,
    scale: float | None = None,
    causal: bool = True,
    query_segment_ids: Int[Array, "B Sq"] | None = None,
    key_segment_ids: Int[Array, "B Sk"] | None = None,
    key_mask: Bool[Array, "B Sk"] | None = None,
    query_offset: int | Int[Array, ""] | None = None,
    window: int | None = None,
    implementation: str | None = None,
) -> Float[Array, "B Sq H dv"]:
    """Attention with weights `softmax_j(scale * query[i] . key[j])` over the keys a query sees.

    Differentiable with respect to query, key and value. The softmax is computed in float32 whatever
    the dtype.

    Args:
      query: `[B, Sq, H, d]`, floating.
      key: `[B, Sk, G, d]`. H is a multiple of G; head `h` reads key/value head `h // (H // G)`.
      value: `[B, Sk, G, dv]`.
      scale: factor of the logits; None is `1 / sqrt(d)`.
      causal: whether a query sees only the keys up to its own position (`j <= i + offset`).
      query_segment_ids: int `[B, Sq]`, together with `key_segment_ids`: a query sees only keys of
        its own segment.
      key_segment_ids: int `[B, Sk]`.
      key_mask: bool `[B, Sk]`; a key with False is padding, which no query sees.
      query_offset: the key index at which query 0 stands, an int or an integer scalar array, traced
        in a decoding step; None is `Sk - Sq`: the last query stands at the last key.
      window: keys more than `window - 1` positions back are not seen; None is no limit.
      implementation: "xla", exact for every case on every platform; "reference" (the definition, on
        whole arrays); "splash" (jax's kernel for TPUs) and "cudnn" (cuDNN's for NVIDIA GPUs), which
        round like bfloat16 and take some cases only. None is "xla": the others are taken by name
        (ask `available_implementations`).

    Returns:
      `[B, Sq, H, dv]` in the dtype of the values; 0 for a query that sees no key.

    Raises:
      ValueError: shapes or dtypes do not fit together, or the implementation cannot run; the
        message names the argument.
    """
    visibility = _visibility(
        query,
        key,
        value,
        causal,
        query_segment_ids,
        key_segment_ids,
        key_mask,
        query_offset,
        window,
    )
    name = choose_implementation(implementation, Case.of(query, key, value, visibility))
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else float(scale)
    run = REGISTRY.load_implementation(name).softmax_attention
    output: Array = run(query, key, value, visibility, scale=scale)
    return output


def softmax_attention_and_log_sum(
    query: Float[Array, "B Sq H d"],
    key: Float[Array, "B Sk G d"],
    value: Float[Array, "B Sk G dv"],
    *,
    scale: float | None = None,
    causal: bool = True,
    query_segment_ids: Int[Array, "B Sq"] | None = None,
    key_segment_ids: Int[Array, "B Sk"] | None = None,
    key_mask: Bool[Array, "B Sk"] | None = None,
    query_offset: int | Int[Array, ""] | None = None,
    window: int | None = None,
    implementation: str | None = None,
) -> SoftmaxOutput:
    """`softmax_attention`, and what attention to further keys needs to be added to it.

    With sums s and s' over two sets of keys, attention over both is the mean of the two outputs
    weighted by s and s'. Arguments and errors as there; output and log-sum are differentiable.
    "splash" and "cudnn" refuse.
    """
    visibility = _visibility(
        query,
        key,
        value,
        causal,
        query_segment_ids,
        key_segment_ids,
        key_mask,
        query_offset,
        window,
    )
    case = dataclasses.replace(Case.of(query, key, value, visibility), log_sum=True)
    name = choose_implementation(implementation, case)
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else float(scale)
    run = REGISTRY.load_implementation(name).softmax_attention_and_log_sum
    return SoftmaxOutput(*run(query, key, value, visibility, scale=scale))


def _visibility(
    query: Array,
    key: Array,
    value: Array,
    causal: bool,
    query_segment_ids: Array | None,
    key_segment_ids: Array | None,
    key_mask: Array | None,
    query_offset: int | Array | None,
    window: int | None,
) -> Visibility:
    """Returns the rules of a call, whose arguments are checked."""
    check_arguments(
        query, key, value, query_segment_ids, key_segment_ids, key_mask, query_offset, window
    )
    return Visibility(
        offset=key.shape[1] - query.shape[1] if query_offset is None else query_offset,
        query_segment_ids=query_segment_ids,
        key_segment_ids=key_segment_ids,
        key_mask=key_mask,
        nearest=0 if causal else None,
        window=window,
    )
