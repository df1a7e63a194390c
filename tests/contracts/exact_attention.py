"""Both kinds of attention and their gradients, whole and in float64: what others must agree with.

In numpy, by the formulas of the definitions, so that nothing is compiled. B is the batch, Sq and Sk
are the lengths, H heads read the keys of G groups; gradients are of the sums of results times their
cotangents. Options are those of the public functions.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Arrays = list[np.ndarray]


def stickbreaking(arrays: Any, options: dict[str, Any]) -> Arrays:
    """Output, remainder, and the gradients of query, key and value.

    Args:
      arrays: query, key, value, and the cotangents of output `[B, Sq, H, dv]` and of remainder
        `[B, Sq, H]`.
      options: of `stickbreaking_attention`, without a tolerance.
    """
    options = dict(options)
    nearest = 0 if options.pop("attend_current", False) else 1
    query, key, value, d_output = _by_head(*arrays[:4])
    d_remainder = np.swapaxes(arrays[4], 1, 2)[..., None]
    scale = options.pop("scale", None) or query.shape[-1] ** -0.5
    seen = _seen(query, key, nearest, **options)
    logits = np.where(seen, scale * (query @ _turned(key)), 0.0)
    log_break = np.where(seen, -np.logaddexp(0, -logits), -np.inf)
    log_keep = np.where(seen, -np.logaddexp(0, logits), 0.0)
    # Sums over all nearer keys, which stand behind.
    log_left = _before(log_keep[..., ::-1])[..., ::-1]
    weights = np.exp(log_break + log_left)
    remainder = np.exp(log_keep.sum(-1, keepdims=True))

    d_log_weights = weights * (d_output @ _turned(value))
    d_log_keep = _before(d_log_weights) + remainder * d_remainder
    d_logits = d_log_weights * np.exp(log_keep) - np.where(
        seen, d_log_keep * np.exp(log_break), 0.0
    )
    gradients = _gradients(query, key, d_output, scale, weights, d_logits, arrays[1].shape[2])
    return [_by_position(weights @ value), np.swapaxes(remainder[..., 0], 1, 2), *gradients]


def softmax(arrays: Any, options: dict[str, Any]) -> Arrays:
    """Output, and the gradients of query, key and value.

    Args:
      arrays: query, key, value, and the cotangent of the output `[B, Sq, H, dv]`.
      options: of `softmax_attention`.
    """
    output, _, *gradients = softmax_and_log_sum([*arrays, np.zeros(arrays[0].shape[:3])], options)
    return [output, *gradients]


def softmax_and_log_sum(arrays: Any, options: dict[str, Any]) -> Arrays:
    """Output, log-sum-exp, and the gradients of query, key and value.

    Args:
      arrays: query, key, value, and the cotangents of output `[B, Sq, H, dv]` and of log-sum-exp
        `[B, Sq, H]`.
      options: of `softmax_attention`.
    """
    options = dict(options)
    nearest = 0 if options.pop("causal", True) else None
    query, key, value, d_output = _by_head(*arrays[:4])
    d_log_sum = np.swapaxes(arrays[4], 1, 2)[..., None]
    scale = options.pop("scale", None) or query.shape[-1] ** -0.5
    seen = _seen(query, key, nearest, **options)
    logits = scale * (query @ _turned(key))
    largest = np.max(logits, axis=-1, keepdims=True, where=seen, initial=np.finfo(np.float64).min)
    shares = np.where(seen, np.exp(np.where(seen, logits - largest, 0.0)), 0.0)
    total = shares.sum(-1, keepdims=True)
    weights = shares / np.where(total > 0, total, 1.0)
    with np.errstate(divide="ignore"):
        log_sum = np.where(total > 0, largest + np.log(total), -np.inf)

    d_log_weights = weights * (d_output @ _turned(value))
    d_logits = d_log_weights - weights * (d_log_weights.sum(-1, keepdims=True) - d_log_sum)
    gradients = _gradients(query, key, d_output, scale, weights, d_logits, arrays[1].shape[2])
    return [_by_position(weights @ value), np.swapaxes(log_sum[..., 0], 1, 2), *gradients]


def _by_head(query: Any, key: Any, value: Any, d_output: Any) -> Arrays:
    """`[B, H, S, d]` each, keys and values once for each head that reads them."""
    repeats = query.shape[2] // key.shape[2]
    key, value = (np.repeat(x, repeats, axis=2) for x in (key, value))
    return [np.asarray(np.swapaxes(x, 1, 2), np.float64) for x in (query, key, value, d_output)]


def _by_position(array: np.ndarray) -> np.ndarray:
    return np.swapaxes(array, 1, 2)


def _turned(array: np.ndarray) -> np.ndarray:
    return np.swapaxes(array, -1, -2)


def _before(array: np.ndarray) -> np.ndarray:
    """Sums of all before, along the last axis."""
    sums = np.zeros_like(array)
    np.cumsum(array[..., :-1], axis=-1, out=sums[..., 1:])
    return sums


def _seen(
    query: np.ndarray,
    key: np.ndarray,
    nearest: int | None,
    *,
    query_segment_ids: np.ndarray | None = None,
    key_segment_ids: np.ndarray | None = None,
    key_mask: np.ndarray | None = None,
    query_offset: int | None = None,
    window: int | None = None,
) -> np.ndarray:
    """Which keys a query sees, `[B or 1, 1, Sq, Sk]`; from the distance `nearest` on."""
    queries, keys = query.shape[2], key.shape[2]
    offset = keys - queries if query_offset is None else query_offset
    distance = np.arange(queries)[:, None] + offset - np.arange(keys)
    seen = np.ones((1, 1, queries, keys), bool)
    if nearest is not None:
        seen = seen & (distance >= nearest)
    if window is not None:
        seen = seen & (distance < window)
    if query_segment_ids is not None and key_segment_ids is not None:
        seen = seen & (query_segment_ids[:, :, None] == key_segment_ids[:, None])[:, None]
    if key_mask is not None:
        seen = seen & key_mask[:, None, None]
    return seen


def _gradients(
    query: np.ndarray,
    key: np.ndarray,
    d_output: np.ndarray,
    scale: float,
    weights: np.ndarray,
    d_logits: np.ndarray,
    groups: int,
) -> Arrays:
    """Those of query, key and value."""
    d_query = scale * (d_logits @ key)
    d_key, d_value = scale * (_turned(d_logits) @ query), _turned(weights) @ d_output
    batch, heads, keys = d_key.shape[:3]
    of_groups = (
        x.reshape(batch, groups, heads // groups, keys, x.shape[-1]).sum(2)
        for x in (d_key, d_value)
    )
    return [_by_position(x) for x in (d_query, *of_groups)]
