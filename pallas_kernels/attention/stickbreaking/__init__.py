"""Stick-breaking attention (Tan et al., arXiv 2410.17980), exact, in linear memory."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels.attention.shared.arguments import (
    check_tolerance,
    checked_scale,
    checked_visibility,
)
from pallas_kernels.attention.shared.blocks import accumulation_dtype
from pallas_kernels.attention.shared.case import Case
from pallas_kernels.attention.shared.containment import contained
from pallas_kernels.attention.shared.widths import at_least_one
from pallas_kernels.attention.stickbreaking.implementations import (
    IMPLEMENTATIONS,
    REGISTRY,
    available_implementations,
    choose_implementation,
)
from pallas_kernels.attention.stickbreaking.residuals import RESIDUAL

__all__ = [
    "IMPLEMENTATIONS",
    "RESIDUAL",
    "Case",
    "StickbreakingOutput",
    "available_implementations",
    "choose_implementation",
    "selected_implementation",
    "stickbreaking_attention",
]

selected_implementation = choose_implementation
"""The name of `choose_implementation` in earlier versions."""


class StickbreakingOutput(NamedTuple):
    """Results of stick-breaking attention.

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
    tolerance: float = 0.0,
    implementation: str | None = None,
) -> StickbreakingOutput:
    """Attention in which each key, the nearest first, takes its part of what is left of a stick.

    With `z[i, j] = scale * query[i] . key[j]` and `beta = sigmoid(z)`, key `j` gets the weight
    `A[i, j] = beta[i, j] * prod_l (1 - beta[i, l])`, the product over all seen keys `l` nearer than
    `j`. The weights sum to `1 - remainder`. Nearness orders the keys, and there is no other
    position in it. (Tan et al., arXiv 2410.17980; `attend_current=True` is the form of
    ModuleFormer, Shen et al., arXiv 2306.04640.)

    Output and remainder are differentiable (once) with respect to query, key and value. The weights
    are computed in float32 whatever the dtype (float64 for float64); results are deterministic, and
    finite for finite logits of any size. No array of size `Sq * Sk` is made, except by
    `implementation="reference"`. On several devices, batch and heads can be sharded freely.

    NaN and infinity reach what sees them and nothing else: a query that sees a key or a value that
    is not finite, or is not finite itself, has the output NaN, and the remainder too unless it was
    a value; the gradients of that query and of all keys and values that it sees are NaN, unless its
    cotangents are 0. Padding, the future and other segments may hold anything.

    Args:
      query: `[B, Sq, H, d]` of float16, bfloat16, float32 or float64. Any size may be 0.
      key: `[B, Sk, G, d]`. H is a multiple of G; head `h` reads key/value head `h // (H // G)`.
      value: `[B, Sk, G, dv]`.
      scale: factor of the logits; None is `1 / sqrt(d)`.
      attend_current: whether a query sees the key at its own position (`j <= i + offset`) or only
        those before it (`j < i + offset`).
      query_segment_ids: int `[B, Sq]`, together with `key_segment_ids`: a query sees only keys of
        its own segment; the others take no stick.
      key_segment_ids: int `[B, Sk]`.
      key_mask: bool `[B, Sk]`; a key with False is padding: it takes no stick and passes all of it
        on.
      query_offset: the key index at which query 0 stands, an int or an integer scalar array, traced
        in a decoding step; None is `Sk - Sq`: the last query stands at the last key. It may be of
        any size.
      window: keys more than `window - 1` positions back take no stick; None is no limit. With an
        offset that is traced, neither is one that `2**31 - 1 - 2 * (Sq + Sk)` is below.
      tolerance: of the early exit, from 0 (off, exact) to below 1. Blocks of keys in front of which
        every query of a block has less of its stick left than this are passed over, forward and
        backward: they get no weight and no gradient, and the remainder is what was left in front of
        them. It costs the output at most `tolerance * max |value|`, the remainder at most
        `tolerance`, the gradient of a logit at most `tolerance * max_j |d_output . value[j] -
        d_remainder|`; `reference.py` derives these and those of the other gradients. What is passed
        over depends on block sizes, and so on the implementation.
      implementation: a name of `IMPLEMENTATIONS`; None picks the best that can run (ask
        `choose_implementation`).

    Returns:
      A `StickbreakingOutput`. A query that sees no key has output 0 and remainder 1, where there
      are no keys too.

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
        nearest=0 if attend_current else 1,
    )
    scale = checked_scale(scale, query.shape[-1])
    check_tolerance(tolerance)
    tolerance = float(tolerance)
    case = Case.of(query, key, value, visibility, tolerance)
    nothing = 0 in (*query.shape[:3], key.shape[1])
    name = choose_implementation(implementation, None if nothing else case)
    value_width = value.shape[-1]
    if nothing:
        output = jnp.zeros((*query.shape[:3], value_width), value.dtype)
        return StickbreakingOutput(output, jnp.ones(query.shape[:3], accumulation_dtype(query)))
    module = REGISTRY.load_implementation(name)

    def attend(*arguments: Any) -> tuple[tuple[jax.Array, ...], jax.Array | None]:
        output, remainder, reached = module.stickbreaking_attention(
            *arguments, scale=scale, tolerance=tolerance
        )
        return (output, remainder), reached

    output, remainder = contained(
        attend,
        *at_least_one(query, key, value),
        visibility=visibility,
        one_query_is=getattr(module, "CONTAINS_ONE_QUERY", False),
        whole=getattr(module, "ON_ONE_DEVICE", False),
        name=RESIDUAL,
    )
    return StickbreakingOutput(output[..., :value_width], remainder)
