"""Stick-breaking attention in blocks, in plain JAX: linear memory, forward and backward.

With the odds `o = exp(z) = beta / (1 - beta)`, the stick that a set of keys leaves is
`prod (1 - beta) = 1 / prod (1 + o)`. So `A_j = o_j / prod_l (1 + o_l)`, over key `j` and all nearer
keys `l`: one exponential and one division for a pair of query and key, no logarithm, and a relative
error that does not grow with the logits as that of a sum of logarithms does. The factors are at
least 1. Where their product overflows, to infinity, the stick is used up and the weight is 0, as it
should be. No running maximum is needed, as weights are at most 1.

Forward, a block of queries walks over its keys from the nearest to the farthest and carries the
excess of its stick. Backward, the same walk computes the weights again. With `a = A (dO . V)`,
`c = dO . O + drem rem` and `n_j` the sum of `a` over the keys nearer than `j`, the gradient of the
logits is `dz_j = a_j - beta_j (c - n_j)`.

With a tolerance, a walk ends where every query of the block has less of its stick left. Batch and
key/value heads, which otherwise walk together, then walk one after the other, so that none waits
for the one that looks back farthest. The backward pass walks as many blocks as the forward did.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels.attention.shared import blocks
from pallas_kernels.attention.shared.block_sizes import BlockSizes, xla_block_sizes
from pallas_kernels.attention.shared.masks import Visibility
from pallas_kernels.attention.stickbreaking.accumulation import (
    LARGEST_LOGIT,
    Sum,
    combine,
    products,
    sums,
)
from pallas_kernels.attention.stickbreaking.residuals import named

CONTAINS_ONE_QUERY = True
"""Whether NaN and infinity stay where they are seen without `containment`, for one query."""

_Residuals = tuple[jax.Array, jax.Array, jax.Array, Visibility, jax.Array, jax.Array, jax.Array]


def stickbreaking_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    visibility: Visibility,
    *,
    scale: float,
    tolerance: float = 0.0,
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """Returns output `[B, Sq, H, dv]` and remainder `[B, Sq, H]` (see the public op).

    And, with a tolerance, the first key that queries reached, int32 `[B, Sq, H]`, else None.
    """
    output, remainder, counts = attend_and_count(
        query, key, value, visibility, scale=scale, tolerance=tolerance
    )
    if not tolerance:
        return output, remainder, None
    sizes = xla_block_sizes(query.shape[1], key.shape[1])
    # Blocks of queries, of which the last is moved back to end with them.
    starts = jnp.minimum(jnp.arange(counts.shape[2]) * sizes.query, query.shape[1] - sizes.query)
    _, stops = visibility.key_range(starts, sizes.query, key.shape[1])
    reached = jnp.maximum(stops - counts * sizes.key, 0)
    index = jnp.searchsorted(starts, jnp.arange(query.shape[1]), side="right") - 1
    reached = jnp.repeat(reached, query.shape[2] // key.shape[2], axis=1)[:, :, index]
    return output, remainder, jnp.swapaxes(reached, 1, 2)


def attend_and_count(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    visibility: Visibility,
    *,
    scale: float,
    tolerance: float = 0.0,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns output, remainder, and how many blocks of keys each block of queries visited.

    The counts are int32 `[B, G, blocks]`, or `[1, 1, blocks]` without a tolerance, where all heads
    visit the same; `xla_block_sizes` returns the sizes of the blocks.
    """
    sizes = xla_block_sizes(query.shape[1], key.shape[1])
    query = blocks.fold_heads(query, key.shape[2])
    output, remainder, counts = _attend(query, key, value, visibility, scale, tolerance, sizes)
    return blocks.unfold_heads(output).astype(value.dtype), blocks.unfold_heads(remainder), counts


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def _attend(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    visibility: Visibility,
    scale: float,
    tolerance: float,
    sizes: BlockSizes,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Query `[B, Sq, G, R, d]` to output `[B, Sq, G, R, dv]`, not rounded, remainder and counts."""
    run = functools.partial(_forward, scale=scale, tolerance=tolerance, sizes=sizes)
    if not tolerance:
        return run(query, key, value, visibility)
    return blocks.one_head_at_a_time(run, visibility, query, key, value)


def _forward(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    visibility: Visibility,
    *,
    scale: float,
    tolerance: float,
    sizes: BlockSizes,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    batch, query_length, groups, repeats, _ = query.shape
    dtype = blocks.accumulation_dtype(query)

    def query_block(
        query_start: jax.Array, _: jax.Array, carry: tuple[jax.Array, ...]
    ) -> tuple[jax.Array, ...]:
        output, remainder, counts = carry
        rows = blocks.read_queries(query, query_start, sizes.query)
        if query_length == 1:
            rows = blocks.nan_if_not_finite(rows)

        def key_block(
            key_start: jax.Array, seen: jax.Array, carry: tuple[Sum, Sum]
        ) -> tuple[Sum, Sum]:
            block_output, excess = carry
            keys = blocks.read_keys(key, key_start, sizes.key)
            values = blocks.read_keys(value, key_start, sizes.key)
            if query_length == 1:
                keys, values = blocks.as_one_query_sees(keys, values, seen)
            _, weights, _, of_tile = _weights(rows, keys, seen, excess.total, scale)
            # Weights are not rounded to the dtype of the values: the backward pass takes `dO . O`
            # for the sum of its own `a`, and a difference is passed on to all keys.
            values = values.astype(weights.dtype)
            more = blocks.dot("bgkd,bgkq->bgdq", values, weights)
            return block_output.plus(more), excess.combined(of_tile)

        shape = (batch, groups, value.shape[-1], rows.shape[2])
        tiles = key.shape[1] // sizes.key
        start = (
            Sum.of(jnp.zeros(shape, dtype), terms=tiles),
            Sum.of(jnp.zeros((batch, groups, rows.shape[2]), dtype)),
        )
        walk = key_block, start, visibility, query_start, key.shape[1], repeats, sizes
        if tolerance:
            (block_output, excess), count = blocks.walk_keys_while(unfinished, *walk)
        else:
            block_output, excess = blocks.walk_keys(*walk)
            count = blocks.blocks_in_sight(visibility, query_start, key.shape[1], sizes)
        rows_output = jnp.swapaxes(block_output.total, 2, 3)
        output = blocks.write_queries(output, rows_output, query_start)
        remainder = blocks.write_queries(remainder, 1 / (1 + excess.total), query_start)
        index = (query_start + sizes.query - 1) // sizes.query
        return output, remainder, counts.at[0, 0, index].set(count.astype(jnp.int32))

    def unfinished(carry: tuple[Sum, Sum]) -> jax.Array:
        _, excess = carry
        # Written so that NaN goes on, to show in the result.
        return ~jnp.all(1 + excess.total > 1 / tolerance)

    output = jnp.zeros((*query.shape[:-1], value.shape[-1]), dtype)
    remainder = jnp.ones(query.shape[:-1], dtype)
    counts = jnp.zeros((1, 1, -(-query_length // sizes.query)), jnp.int32)
    start: tuple[jax.Array, ...] = output, remainder, counts
    output, remainder, counts = blocks.walk_queries(query_block, start, query_length, sizes)
    return output, remainder, counts


def _attend_forward(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    visibility: Visibility,
    scale: float,
    tolerance: float,
    sizes: BlockSizes,
) -> tuple[tuple[jax.Array, jax.Array, jax.Array], _Residuals]:
    query = named(query)
    results = jax.tree.map(named, _attend(query, key, value, visibility, scale, tolerance, sizes))
    return results, (query, key, value, visibility, *results)


def _attend_backward(
    scale: float,
    tolerance: float,
    sizes: BlockSizes,
    residuals: _Residuals,
    cotangents: tuple[jax.Array, jax.Array, Any],
) -> tuple[jax.Array, jax.Array, jax.Array, None]:
    query, key, value, visibility, output, remainder, counts = residuals
    d_output, d_remainder, _ = cotangents
    run = functools.partial(_backward, scale=scale, sizes=sizes)
    arrays = query, key, value, output, remainder, d_output, d_remainder
    if not tolerance:
        return *run(*arrays, None, visibility), None
    gradients = blocks.one_head_at_a_time(run, visibility, *arrays, counts)
    return *gradients, None


def _backward(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    output: jax.Array,
    remainder: jax.Array,
    d_output: jax.Array,
    d_remainder: jax.Array,
    counts: jax.Array | None,
    visibility: Visibility,
    *,
    scale: float,
    sizes: BlockSizes,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Gradients of query, key and value; `counts` limits the walks to those of the forward pass."""
    query_length, _, repeats = query.shape[1:4]
    total = jnp.sum(d_output * output, axis=-1) + d_remainder * remainder
    largest = jnp.max(jnp.abs(value), axis=(1, 3)).astype(output.dtype)
    d_output = d_output.astype(value.dtype)

    def query_block(
        query_start: jax.Array, fresh: jax.Array, carry: tuple[jax.Array, ...]
    ) -> tuple[jax.Array, ...]:
        d_query, d_key, d_value = carry
        # Queries that the block before held have passed on their gradients already.
        fresh = jnp.tile(fresh, repeats)
        rows = blocks.read_queries(query, query_start, sizes.query)
        d_rows = blocks.read_queries(d_output, query_start, sizes.query)
        d_rows = jnp.where(fresh[:, None], d_rows, 0)
        rest = jnp.where(fresh, blocks.read_queries(total, query_start, sizes.query), 0)
        # All keys from a point on add at most this times the stick that is left there to `total`.
        d_rows_remainder = blocks.read_queries(d_remainder, query_start, sizes.query)
        bound = jnp.sum(jnp.abs(d_rows), axis=-1, dtype=output.dtype) * largest[:, :, None]
        bound = jnp.maximum(bound, jnp.abs(d_rows_remainder))

        def key_block(
            key_start: jax.Array,
            seen: jax.Array,
            carry: tuple[jax.Array, jax.Array, jax.Array, Sum, Sum],
        ) -> tuple[jax.Array, jax.Array, jax.Array, Sum, Sum]:
            block_d_query, d_key, d_value, excess, rest = carry
            keys = blocks.read_keys(key, key_start, sizes.key)
            values = blocks.read_keys(value, key_start, sizes.key)
            odds, weights, in_front, of_tile = _weights(rows, keys, seen, excess.total, scale)
            # Values out of sight may be so large that a product with them overflows.
            effects = blocks.dot("bgkd,bgqd->bgkq", values, d_rows)
            a = jnp.where(jax.lax.optimization_barrier(seen), weights * effects, 0)
            limits = bound[:, :, None] / (1 + in_front)
            d_logits, passed = _d_logits(a, odds, rest.total, limits)
            d_logits = d_logits.astype(keys.dtype)
            block_d_query += blocks.dot("bgkd,bgkq->bgdq", keys, d_logits)
            d_keys = blocks.dot("bgkq,bgqd->bgkd", d_logits, rows)
            d_values = blocks.dot("bgkq,bgqd->bgkd", weights.astype(d_rows.dtype), d_rows)
            d_key = blocks.add_keys(d_key, d_keys, key_start)
            d_value = blocks.add_keys(d_value, d_values, key_start)
            return block_d_query, d_key, d_value, excess.combined(of_tile), rest.plus(-passed)

        batch, groups, count, width = rows.shape
        block_d_query = jnp.zeros((batch, groups, width, count), output.dtype)
        start = block_d_query, d_key, d_value, Sum.of(jnp.zeros_like(rest)), Sum.of(rest)
        walk = key_block, start, visibility, query_start, key.shape[1], repeats, sizes
        index = (query_start + sizes.query - 1) // sizes.query
        most = None if counts is None else counts[0, 0, index]
        block_d_query, d_key, d_value, _, _ = blocks.walk_keys(*walk, most=most)
        d_query = blocks.add_queries(d_query, jnp.swapaxes(block_d_query, 2, 3), query_start)
        return d_query, d_key, d_value

    start: tuple[jax.Array, ...] = (
        jnp.zeros(query.shape, output.dtype),
        jnp.zeros(jnp.swapaxes(key, 1, 2).shape, output.dtype),
        jnp.zeros(jnp.swapaxes(value, 1, 2).shape, output.dtype),
    )
    d_query, d_key, d_value = blocks.walk_queries(query_block, start, query_length, sizes)
    return (
        (scale * d_query).astype(query.dtype),
        (scale * jnp.swapaxes(d_key, 1, 2)).astype(key.dtype),
        jnp.swapaxes(d_value, 1, 2).astype(value.dtype),
    )


_attend.defvjp(_attend_forward, _attend_backward)


def _weights(
    rows: jax.Array, keys: jax.Array, seen: jax.Array, excess: jax.Array, scale: float
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Odds and weights of a tile `[B, G, K, Q]`, and excesses in front of its spans and of itself.

    `excess` is that of all keys in front of the tile.
    """
    logits = scale * blocks.dot("bgkd,bgqd->bgkq", keys, rows)
    odds = blocks.masked_exp(logits, seen, LARGEST_LOGIT)
    within, spans = products(odds)
    in_front = jax.lax.optimization_barrier(combine(spans[:, :, 1:], excess[:, :, None]))
    weights = odds.reshape(within.shape) / (within * (1 + in_front[:, :, :, None]))
    weights = jax.lax.optimization_barrier(weights.reshape(odds.shape))
    return odds, weights, in_front, spans[:, :, 0]


def _d_logits(
    a: jax.Array, odds: jax.Array, rest: jax.Array, limits: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Gradient of the logits of a tile, and what it takes from `rest = c - n`.

    `rest` is bounded by the stick that is left at each span, so that it ends with the stick.
    Without that, its rounding error, small as it is, would give each of thousands of far keys the
    same wrong gradient.
    """
    within, spans = sums(a)
    bounded = jnp.clip(rest[:, :, None] - spans[:, :, 1:], -limits, limits)
    bounded = jax.lax.optimization_barrier(bounded)[:, :, :, None]
    shape = within.shape
    beta = (odds / (1 + odds)).reshape(shape)
    d_logits = a.reshape(shape) - beta * (bounded - (within - a.reshape(shape)))
    return d_logits.reshape(a.shape), spans[:, :, 0]
