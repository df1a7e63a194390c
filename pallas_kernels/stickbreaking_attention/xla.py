"""Stick-breaking attention in blocks, in plain JAX: linear memory, forward and backward.

With the odds `o = exp(z) = beta / (1 - beta)`, the stick that is left after a set of keys is
`prod (1 - beta) = 1 / prod (1 + o)`. So `A_j = o_j / prod_{l >= j} (1 + o_l)`, the product over key `j`
and all nearer ones: one exponential and one division for a pair of query and key, no logarithm, and a
relative error that does not grow with the logits as that of a sum of logarithms does. All factors are
at least 1, so where the product overflows, to infinity, the stick is used up and the weight is 0, as it
should be. No running maximum is needed, as the weights are at most 1.

Forward, a block of queries walks over its keys from the nearest to the farthest and carries the inverse
of its stick. Backward, the same walk computes the weights again. With `a = A * (dO . V)`,
`c = dO . O + drem * rem` and `n_j` the sum of `a` over the keys nearer than `j`, the gradient of the
logits is `dz_j = a_j - beta_j (c - n_j)`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from pallas_kernels.stickbreaking_attention import blocks
from pallas_kernels.stickbreaking_attention.block_sizes import BlockSizes, xla_block_sizes
from pallas_kernels.stickbreaking_attention.masks import Visibility

# Logits are bounded to this. A key with odds of exp(64) leaves 1.6e-28 of the stick, nothing in
# float32; and odds this far from the largest float32 (exp(88.7)) can make a product overflow only where
# less than exp(-24) = 4e-11 of the stick was left, so that no weight that counts is lost.
_LARGEST_LOGIT = 64.0
# Keys whose running products are taken together, in two steps of four.
_SPAN = 16


def stickbreaking_attention(
    query: jax.Array, key: jax.Array, value: jax.Array, visibility: Visibility, *, scale: float
) -> tuple[jax.Array, jax.Array]:
    """Returns output `[B, Sq, H, dv]` and remainder `[B, Sq, H]` (see the public op)."""
    batch, query_length, heads, _ = query.shape
    key_length, groups = key.shape[1:3]
    if 0 in (batch, query_length, key_length, heads):
        output = jnp.zeros((batch, query_length, heads, value.shape[-1]), value.dtype)
        remainder = jnp.ones((batch, query_length, heads), blocks.accumulation_dtype(query))
        return output, remainder
    sizes = xla_block_sizes(batch * heads, query_length, key_length)
    folded = blocks.fold_heads(query, groups)
    output, remainder = _attend(folded, key, value, visibility, scale, sizes)
    return blocks.unfold_heads(output).astype(value.dtype), blocks.unfold_heads(remainder)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _attend(query, key, value, visibility, scale, sizes):
    """Query `[B, Sq, G, R, d]` to output `[B, Sq, G, R, dv]`, not rounded, and remainder."""
    batch, query_length, groups, repeats, _ = query.shape
    dtype = blocks.accumulation_dtype(query)

    def query_block(query_start, _, carry):
        output, remainder = carry
        rows = blocks.read_queries(query, query_start, sizes.query)

        def key_block(key_start, seen, carry):
            output, inverse_stick = carry
            keys = blocks.read_keys(key, key_start, sizes.key)
            values = blocks.read_keys(value, key_start, sizes.key)
            _, weights, inverse_stick = _weights(rows, keys, seen, inverse_stick, scale)
            output += blocks.dot("bgkd,bgkq->bgdq", values, weights.astype(values.dtype))
            return output, inverse_stick

        block_output, inverse_stick = blocks.walk_keys(
            key_block,
            (
                jnp.zeros((batch, groups, value.shape[-1], rows.shape[2]), dtype),
                jnp.ones((batch, groups, rows.shape[2]), dtype),
            ),
            visibility,
            query_start,
            key.shape[1],
            repeats,
            sizes,
        )
        block_output = jnp.swapaxes(block_output, 2, 3)
        output = blocks.write_queries(output, block_output, query_start)
        return output, blocks.write_queries(remainder, 1 / inverse_stick, query_start)

    output = jnp.zeros((*query.shape[:-1], value.shape[-1]), dtype)
    carry = output, jnp.ones(query.shape[:-1], dtype)
    return blocks.walk_queries(query_block, carry, query_length, sizes)


def _attend_forward(query, key, value, visibility, scale, sizes):
    output, remainder = _attend(query, key, value, visibility, scale, sizes)
    return (output, remainder), (query, key, value, visibility, output, remainder)


def _attend_backward(scale, sizes, residuals, cotangents):
    query, key, value, visibility, output, remainder = residuals
    d_output, d_remainder = cotangents
    query_length, groups, repeats = query.shape[1:4]
    total = jnp.sum(d_output * output, axis=-1) + d_remainder * remainder
    # What keys farther than `j` can still add to `total` is at most this times the stick left there.
    largest = jnp.max(jnp.abs(value), axis=(1, 3)).astype(output.dtype)[:, None, :, None]
    bound = jnp.maximum(jnp.sum(jnp.abs(d_output), axis=-1) * largest, jnp.abs(d_remainder))
    d_output = d_output.astype(value.dtype)

    def query_block(query_start, fresh, carry):
        d_query, d_key, d_value = carry
        rows = blocks.read_queries(query, query_start, sizes.query)
        d_rows = blocks.read_queries(d_output, query_start, sizes.query)
        # Queries that the block before held have passed on their gradients already.
        fresh = jnp.tile(fresh, repeats)
        d_rows = jnp.where(fresh[:, None], d_rows, 0)
        rest = jnp.where(fresh, blocks.read_queries(total, query_start, sizes.query), 0)
        rows_bound = blocks.read_queries(bound, query_start, sizes.query)

        def key_block(key_start, seen, carry):
            block_d_query, d_key, d_value, inverse_stick, rest = carry
            # Rounding of `rest` is harmless while it is large. Bounded by the stick it also ends
            # with it: else each of thousands of far keys would get the same small, wrong gradient.
            limit = rows_bound / inverse_stick
            rest = jnp.clip(rest, -limit, limit)
            keys = blocks.read_keys(key, key_start, sizes.key)
            values = blocks.read_keys(value, key_start, sizes.key)
            odds, weights, inverse_stick = _weights(rows, keys, seen, inverse_stick, scale)
            a = weights * blocks.dot("bgkd,bgqd->bgkq", values, d_rows)
            d_logits, a_total = _d_logits(a, odds, rest)
            d_logits = d_logits.astype(keys.dtype)
            block_d_query += blocks.dot("bgkd,bgkq->bgdq", keys, d_logits)
            d_keys = blocks.dot("bgkq,bgqd->bgkd", d_logits, rows)
            d_values = blocks.dot("bgkq,bgqd->bgkd", weights.astype(d_rows.dtype), d_rows)
            d_key = blocks.add_keys(d_key, d_keys, key_start)
            d_value = blocks.add_keys(d_value, d_values, key_start)
            return block_d_query, d_key, d_value, inverse_stick, rest - a_total

        block_d_query, d_key, d_value, _, _ = blocks.walk_keys(
            key_block,
            (
                jnp.zeros((*rows.shape[:2], rows.shape[3], rows.shape[2]), output.dtype),
                d_key,
                d_value,
                jnp.ones_like(rest),
                rest,
            ),
            visibility,
            query_start,
            key.shape[1],
            repeats,
            sizes,
        )
        d_query = blocks.add_queries(d_query, jnp.swapaxes(block_d_query, 2, 3), query_start)
        return d_query, d_key, d_value

    carry = (
        jnp.zeros(query.shape, output.dtype),
        jnp.zeros(jnp.swapaxes(key, 1, 2).shape, output.dtype),
        jnp.zeros(jnp.swapaxes(value, 1, 2).shape, output.dtype),
    )
    d_query, d_key, d_value = blocks.walk_queries(query_block, carry, query_length, sizes)
    return (
        (scale * d_query).astype(query.dtype),
        (scale * jnp.swapaxes(d_key, 1, 2)).astype(key.dtype),
        jnp.swapaxes(d_value, 1, 2).astype(value.dtype),
        None,
    )


_attend.defvjp(_attend_forward, _attend_backward)


def _weights(rows, keys, seen, inverse_stick, scale):
    """Odds and weights of a tile `[B, G, K, Q]`, and the inverse of the stick left behind it."""
    logits = scale * blocks.dot("bgkd,bgqd->bgkq", keys, rows)
    # A key that is not seen has no odds. The mask enters as a bound that is computed beforehand, as
    # comparisons in the same loop would keep XLA from vectorising the exponential (7 times slower).
    bound = jnp.where(seen, _LARGEST_LOGIT, -jnp.inf).astype(logits.dtype)
    bound = jax.lax.optimization_barrier(bound)
    odds = jax.lax.optimization_barrier(jnp.exp(jnp.minimum(logits, bound)))
    within, nearer, total = _accumulate(1 + odds, jnp.multiply, 1)
    nearer = nearer * inverse_stick[:, :, None]
    weights = odds.reshape(within.shape) / (within * nearer[:, :, :, None])
    weights = jax.lax.optimization_barrier(weights.reshape(odds.shape))
    return odds, weights, total * inverse_stick


def _d_logits(a, odds, rest):
    """Gradient of the logits of a tile, and the sum of `a` over its keys."""
    within, nearer, total = _accumulate(a, jnp.add, 0)
    rest = (rest[:, :, None] - nearer)[:, :, :, None]
    a = a.reshape(within.shape)
    odds = odds.reshape(within.shape)
    d_logits = a - odds / (1 + odds) * (rest - (within - a))
    return d_logits.reshape(a.shape[0], a.shape[1], -1, a.shape[-1]), total


def _accumulate(x, combine, neutral):
    """Combines each element of `x` `[B, G, K, Q]` with those of all nearer (that is, later) keys.

    Returns three parts: `[B, G, spans, span, Q]`, each element with those after it in its span of
    keys; `[B, G, spans, Q]`, all of the spans after it; `[B, G, Q]`, everything.
    """
    batch, groups, size, queries = x.shape
    if size % _SPAN:
        within = _scan(x, combine, neutral)
        return within[:, :, None], jnp.full_like(x[:, :, :1], neutral), within[:, :, 0]
    x = x.reshape(batch, groups, size // _SPAN, _SPAN, queries)
    fours = jax.lax.optimization_barrier(_combine_shifted(x, 1, combine, neutral))
    within = _combine_shifted(fours, 4, combine, neutral)
    spans = functools.reduce(combine, [fours[:, :, :, n] for n in range(0, _SPAN, 4)])
    spans = _scan(spans, combine, neutral)
    return within, _shift(spans, 1, neutral), spans[:, :, 0]


def _scan(x, combine, neutral):
    """Running combination from the end of the second last axis on."""
    x = jax.lax.optimization_barrier(x)
    stride = 1
    while stride < x.shape[-2]:
        x = jax.lax.optimization_barrier(_combine_shifted(x, stride, combine, neutral))
        stride *= 4
    return x


def _combine_shifted(x, stride, combine, neutral):
    """A pass of radix four: each element with those at one, two and three strides after it.

    Measured on CPU, a pass costs little more than a copy, 0.1 ns an element on two cores, where a
    triangular matrix product takes 0.4 and `cumsum` 2 to 3. What several readers share is put behind
    an `optimization_barrier`: without it XLA stores the shifted copies in place of their combination.
    """
    shifts = [n * stride for n in range(1, 4) if n * stride < x.shape[-2]]
    return functools.reduce(combine, [_shift(x, shift, neutral) for shift in shifts], x)


def _shift(x, count, neutral):
    x = jax.lax.slice_in_dim(x, count, x.shape[-2], axis=x.ndim - 2)
    padding = [(0, 0, 0)] * x.ndim
    padding[-2] = (0, count, 0)
    return jax.lax.pad(x, jnp.asarray(neutral, x.dtype), padding)
