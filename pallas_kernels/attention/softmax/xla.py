"""Softmax attention in plain XLA, blockwise with an online softmax.

Exact (Milakov and Gimelshein, arXiv 1805.02867; Dao, arXiv 2307.08691), and no array of size
`Sq * Sk` is made, forward or backward.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import Array

from pallas_kernels.attention.shared import blocks
from pallas_kernels.attention.shared.block_sizes import BlockSizes, xla_block_sizes
from pallas_kernels.attention.shared.masks import Visibility

CONTAINS_ONE_QUERY = True
"""Whether NaN and infinity stay where they are seen without `containment`, for one query."""

_Residuals = tuple[Array, Array, Array, Visibility, Array, Array, Array]


def softmax_attention(
    query: Array, key: Array, value: Array, visibility: Visibility, *, scale: float
) -> Array:
    """Returns output `[B, Sq, H, dv]` (see the public op)."""
    query = blocks.fold_heads(query, key.shape[2])
    sizes = xla_block_sizes(query.shape[1], key.shape[1])
    output = _attend(query, key, value, visibility, scale, sizes, False)[0]
    return blocks.unfold_heads(output).astype(value.dtype)


def softmax_attention_and_log_sum(
    query: Array, key: Array, value: Array, visibility: Visibility, *, scale: float
) -> tuple[Array, Array]:
    """Returns output `[B, Sq, H, dv]` and log-sum-exp `[B, Sq, H]` (see the public op)."""
    query = blocks.fold_heads(query, key.shape[2])
    sizes = xla_block_sizes(query.shape[1], key.shape[1])
    output, maximum, share = _attend(query, key, value, visibility, scale, sizes, True)
    # The maximum brings the whole gradient, see `_attend`.
    share = jax.lax.stop_gradient(share)
    some = share != 0
    log_sum = jnp.where(some, maximum - jnp.log(jnp.where(some, share, 1)), -jnp.inf)
    log_sum = blocks.unfold_heads(log_sum[..., None])[..., 0]
    return blocks.unfold_heads(output).astype(value.dtype), log_sum


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def _attend(
    query: Array,
    key: Array,
    value: Array,
    visibility: Visibility,
    scale: float,
    sizes: BlockSizes,
    with_log_sum: bool,
) -> tuple[Array, Array, Array]:
    """Query `[B, Sq, G, R, d]` to output `[B, Sq, G, R, dv]`, not rounded, maximum and share.

    A weight is `exp(logit - maximum) * share`. One number, `maximum - log(share)`, would lose the
    share beside a large maximum.

    With the log-sum-exp, which is that number, the cotangent of the maximum is that of it; without
    it, neither maximum nor share has one.
    """
    batch, query_length, groups, repeats, _ = query.shape
    dtype = blocks.accumulation_dtype(query)
    # Finite, so that the difference of two maxima over nothing is 0 and not NaN.
    lowest = jnp.finfo(dtype).min

    def query_block(query_start: Array, _: Array, carry: tuple[Array, ...]) -> tuple[Array, ...]:
        output, maximum, share = carry
        rows = blocks.read_queries(query, query_start, sizes.query)
        if query_length == 1:
            rows = blocks.nan_if_not_finite(rows)

        def key_block(key_start: Array, seen: Array, carry: tuple[Array, ...]) -> tuple[Array, ...]:
            output, normaliser, largest = carry
            keys = blocks.read_keys(key, key_start, sizes.key)
            values = blocks.read_keys(value, key_start, sizes.key)
            if query_length == 1:
                keys, values = blocks.as_one_query_sees(keys, values, seen)
            logits = _logits(rows, keys, seen, scale)
            new_largest = jnp.maximum(largest, jnp.max(logits, axis=2))
            weights = jnp.exp(logits - new_largest[:, :, None])
            weights = jax.lax.optimization_barrier(weights)
            shrink = jnp.exp(largest - new_largest)
            normaliser = normaliser * shrink + jnp.sum(weights, axis=2)
            # In float32, as the backward pass takes `dO . O` for a sum of its own.
            block_output = blocks.dot("bgkd,bgkq->bgdq", values.astype(dtype), weights)
            return output * shrink[:, :, None] + block_output, normaliser, new_largest

        shape = (batch, groups, rows.shape[2])
        start: tuple[Array, ...] = (
            jnp.zeros((batch, groups, value.shape[-1], rows.shape[2]), dtype),
            jnp.zeros(shape, dtype),
            jnp.full(shape, lowest, dtype),
        )
        block_output, normaliser, largest = blocks.walk_keys(
            key_block, start, visibility, query_start, key.shape[1], repeats, sizes
        )
        # A query that saw no key has normaliser 0: output and weights 0.
        block_share = jnp.where(normaliser == 0, 0, 1 / normaliser)
        block_output = jnp.swapaxes(block_output * block_share[:, :, None], 2, 3)
        return (
            blocks.write_queries(output, block_output, query_start),
            blocks.write_queries(maximum, largest, query_start),
            blocks.write_queries(share, block_share, query_start),
        )

    start: tuple[Array, ...] = (
        jnp.zeros((*query.shape[:-1], value.shape[-1]), dtype),
        jnp.zeros(query.shape[:-1], dtype),
        jnp.zeros(query.shape[:-1], dtype),
    )
    output, maximum, share = blocks.walk_queries(query_block, start, query_length, sizes)
    return output, maximum, share


def _attend_forward(
    query: Array,
    key: Array,
    value: Array,
    visibility: Visibility,
    scale: float,
    sizes: BlockSizes,
    with_log_sum: bool,
) -> tuple[tuple[Array, Array, Array], _Residuals]:
    output, maximum, share = _attend(query, key, value, visibility, scale, sizes, with_log_sum)
    return (output, maximum, share), (query, key, value, visibility, output, maximum, share)


def _attend_backward(
    scale: float,
    sizes: BlockSizes,
    with_log_sum: bool,
    residuals: _Residuals,
    cotangents: tuple[Array, Array, Array],
) -> tuple[Array, Array, Array, None]:
    query, key, value, visibility, output, maximum, share = residuals
    d_output, d_log_sum, _ = cotangents
    query_length, _, repeats = query.shape[1:4]
    mean = jnp.sum(d_output * output, axis=-1)
    if with_log_sum:  # d log_sum / d logit is the weight
        mean = mean - d_log_sum
    d_output = d_output.astype(value.dtype)

    def query_block(
        query_start: Array, fresh: Array, carry: tuple[Array, ...]
    ) -> tuple[Array, ...]:
        d_query, d_key, d_value = carry
        # Queries that the block before held have passed on their gradients already.
        fresh = jnp.tile(fresh, repeats)
        rows = blocks.read_queries(query, query_start, sizes.query)
        d_rows = blocks.read_queries(d_output, query_start, sizes.query)
        d_rows = jnp.where(fresh[:, None], d_rows, 0)
        rows_mean = jnp.where(fresh, blocks.read_queries(mean, query_start, sizes.query), 0)
        rows_maximum = blocks.read_queries(maximum, query_start, sizes.query)[:, :, None]
        rows_share = blocks.read_queries(share, query_start, sizes.query)[:, :, None]

        def key_block(key_start: Array, seen: Array, carry: tuple[Array, ...]) -> tuple[Array, ...]:
            block_d_query, d_key, d_value = carry
            keys = blocks.read_keys(key, key_start, sizes.key)
            values = blocks.read_keys(value, key_start, sizes.key)
            weights = jnp.exp(_logits(rows, keys, seen, scale) - rows_maximum) * rows_share
            weights = jax.lax.optimization_barrier(weights)
            d_weights = blocks.dot("bgkd,bgqd->bgkq", values, d_rows)
            # Values out of sight may be so large that a product with them overflows.
            d_logits = weights * (d_weights - rows_mean[:, :, None])
            d_logits = jnp.where(jax.lax.optimization_barrier(seen), d_logits, 0).astype(keys.dtype)
            block_d_query += blocks.dot("bgkd,bgkq->bgdq", keys, d_logits)
            d_keys = blocks.dot("bgkq,bgqd->bgkd", d_logits, rows)
            d_values = blocks.dot("bgkq,bgqd->bgkd", weights.astype(d_rows.dtype), d_rows)
            d_key = blocks.add_keys(d_key, d_keys, key_start)
            return block_d_query, d_key, blocks.add_keys(d_value, d_values, key_start)

        block_d_query = jnp.zeros((*rows.shape[:2], rows.shape[3], rows.shape[2]), output.dtype)
        start: tuple[Array, ...] = block_d_query, d_key, d_value
        block_d_query, d_key, d_value = blocks.walk_keys(
            key_block, start, visibility, query_start, key.shape[1], repeats, sizes
        )
        d_query = blocks.add_queries(d_query, jnp.swapaxes(block_d_query, 2, 3), query_start)
        return d_query, d_key, d_value

    start: tuple[Array, ...] = (
        jnp.zeros(query.shape, output.dtype),
        jnp.zeros(jnp.swapaxes(key, 1, 2).shape, output.dtype),
        jnp.zeros(jnp.swapaxes(value, 1, 2).shape, output.dtype),
    )
    d_query, d_key, d_value = blocks.walk_queries(query_block, start, query_length, sizes)
    return (
        (scale * d_query).astype(query.dtype),
        (scale * jnp.swapaxes(d_key, 1, 2)).astype(key.dtype),
        jnp.swapaxes(d_value, 1, 2).astype(value.dtype),
        None,
    )


_attend.defvjp(_attend_forward, _attend_backward)


def _logits(rows: Array, keys: Array, seen: Array, scale: float) -> Array:
    """Logits of a tile `[B, G, K, Q]`, minus infinity where the key is not seen."""
    logits = scale * blocks.dot("bgkd,bgqd->bgkq", keys, rows)
    # As in `blocks.masked_exp`, the mask is computed beforehand.
    logits = jnp.minimum(logits, jnp.finfo(logits.dtype).max)
    return jnp.where(jax.lax.optimization_barrier(seen), logits, -jnp.inf)
