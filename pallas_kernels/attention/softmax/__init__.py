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
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from pallas_kernels.attention.shared.arguments import checked_scale, checked_visibility
from pallas_kernels.attention.shared.blocks import accumulation_dtype
from pallas_kernels.attention.shared.case import Case
from pallas_kernels.attention.shared.containment import contained
from pallas_kernels.attention.shared.masks import Visibility
from pallas_kernels.attention.shared.widths import at_least_one
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
    the dtype. NaN and infinity reach what sees them and nothing else, as in
    `stickbreaking_attention`.

    Args:
      query: `[B, Sq, H, d]` of float16, bfloat16, float32 or float64. Any size may be 0.
      key: `[B, Sk, G, d]`. H is a multiple of G; head `h` reads key/value head `h // (H // G)`.
      value: `[B, Sk, G, dv]`.
      scale: factor of the logits; None is `1 / sqrt(d)`.
      causal: whether a query sees only the keys up to its own position (`j <= i + offset`).
      query_segment_ids: int `[B, Sq]`, together with `key_segment_ids`: a query sees only keys of
        its own segment.
      key_segment_ids: int `[B, Sk]`.
      key_mask: bool `[B, Sk]`; a key with False is padding, which no query sees.
      query_offset: the key index at which query 0 stands, an int or an integer scalar array, traced
        in a decoding step; None is `Sk - Sq`: the last query stands at the last key. It may be of
        any size.
      window: keys more than `window - 1` positions back are not seen; None is no limit. With an
        offset that is traced, neither is one that `2**31 - 1 - 2 * (Sq + Sk)` is below.
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
    visibility = checked_visibility(
        query,
        key,
        value,
        query_segment_ids=query_segment_ids,
        key_segment_ids=key_segment_ids,
        key_mask=key_mask,
        query_offset=query_offset,
        window=window,
        nearest=0 if causal else None,
    )
    (output,) = _attend(query, key, value, visibility, scale, implementation, log_sum=False)
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
    visibility = checked_visibility(
        query,
        key,
        value,
        query_segment_ids=query_segment_ids,
        key_segment_ids=key_segment_ids,
        key_mask=key_mask,
        query_offset=query_offset,
        window=window,
        nearest=0 if causal else None,
    )
    results = _attend(query, key, value, visibility, scale, implementation, log_sum=True)
    return SoftmaxOutput(*results)


def _attend(
    query: Array,
    key: Array,
    value: Array,
    visibility: Visibility,
    scale: float | None,
    implementation: str | None,
    *,
    log_sum: bool,
) -> tuple[Array, ...]:
    """Output, and the log-sum-exp if it is asked for, by the implementation that will run."""
    factor = checked_scale(scale, query.shape[-1])
    case = dataclasses.replace(Case.of(query, key, value, visibility), log_sum=log_sum)
    nothing = 0 in (*query.shape[:3], key.shape[1])
    name = choose_implementation(implementation, None if nothing else case)
    module = REGISTRY.load_implementation(name)
    value_width = value.shape[-1]
    if nothing:
        output = jnp.zeros((*query.shape[:3], value_width), value.dtype)
        none = jnp.full(query.shape[:3], -jnp.inf, accumulation_dtype(query))
        return (output, none) if log_sum else (output,)

    def attend(*arguments: Any) -> tuple[tuple[Array, ...], None]:
        if log_sum:
            return module.softmax_attention_and_log_sum(*arguments, scale=factor), None
        return (module.softmax_attention(*arguments, scale=factor),), None

    output, *rest = contained(
        attend,
        *at_least_one(query, key, value),
        visibility=visibility,
        one_query_is=getattr(module, "CONTAINS_ONE_QUERY", False),
    )
    return output[..., :value_width], *rest
