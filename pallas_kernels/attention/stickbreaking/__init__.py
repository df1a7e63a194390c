"""Stick-breaking attention (Tan et al., arXiv 2410.17980), exact, in linear memory."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax

from pallas_kernels.attention.shared.arguments import check_arguments, check_tolerance
from pallas_kernels.attention.shared.case import Case
from pallas_kernels.attention.shared.masks import Visibility
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

    Args:
      query: `[B, Sq, H, d]`, floating.
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
        in a decoding step; None is `Sk - Sq`: the last query stands at the last key.
      window: keys more than `window - 1` positions back take no stick; None is no limit.
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
      A `StickbreakingOutput`. A query that sees no key has output 0 and remainder 1.

    Raises:
      ValueError: shapes or dtypes do not fit together, or the implementation cannot run; the
        message names the argument.
    """
    check_arguments(
        query, key, value, query_segment_ids, key_segment_ids, key_mask, query_offset, window
    )
    check_tolerance(tolerance)
    visibility = Visibility(
        offset=key.shape[1] - query.shape[1] if query_offset is None else query_offset,
        query_segment_ids=query_segment_ids,
        key_segment_ids=key_segment_ids,
        key_mask=key_mask,
        nearest=0 if attend_current else 1,
        window=window,
    )
    tolerance = float(tolerance)
    name = choose_implementation(implementation, Case.of(query, key, value, visibility, tolerance))
    scale = 1.0 / math.sqrt(query.shape[-1]) if scale is None else float(scale)
    run = REGISTRY.load_implementation(name).stickbreaking_attention
    return StickbreakingOutput(
        *run(query, key, value, visibility, scale=scale, tolerance=tolerance)
    )
