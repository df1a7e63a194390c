"""Stick-breaking attention in blocks, in plain JAX: linear memory, forward and backward.

Forward, a block of queries walks over its blocks of keys from the nearest to the farthest and carries
the logarithm of what is left of the stick. No running maximum is needed, as the weights are at most 1.
Backward, the same walk recomputes the weights. With `a = A * (dO . V)`, `c = dO . O + drem * rem` and
`n_j` the sum of `a` over the keys nearer than `j`, the gradient of the logits is
`dz_j = a_j - beta_j (c - n_j)`.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp

from pallas_kernels.stickbreaking_attention.block_sizes import xla_block_sizes
from pallas_kernels.stickbreaking_attention.masks import Visibility

_HIGHEST = jax.lax.Precision.HIGHEST
# A logit whose sigmoid is 0: what a key that is not seen gets. Bounding logits to it also keeps the
# sums finite.
_LARGEST_LOGIT = 1e30


def stickbreaking_attention(
    query: jax.Array, key: jax.Array, value: jax.Array, visibility: Visibility, *, scale: float
) -> tuple[jax.Array, jax.Array]:
    """Returns output `[B, Sq, H, dv]` and remainder `[B, Sq, H]` (see the public op)."""
    batch, query_length, heads, _ = query.shape
    key_length, groups = key.shape[1:3]
    accumulation = jnp.promote_types(query.dtype, jnp.float32)
    if 0 in (batch, query_length, key_length, heads):
        output = jnp.zeros((batch, query_length, heads, value.shape[-1]), value.dtype)
        return output, jnp.ones((batch, query_length, heads), accumulation)
    sizes = xla_block_sizes(query_length, key_length)
    padding = -query_length % sizes.query
    grouped = query.reshape(batch, query_length, groups, heads // groups, -1)
    grouped = jnp.pad(grouped, ((0, 0), (0, padding), (0, 0), (0, 0), (0, 0)))
    grouped = jnp.transpose(grouped, (0, 2, 3, 1, 4))  # B G R Sq d
    if visibility.query_segment_ids is not None:
        ids = jnp.pad(visibility.query_segment_ids, ((0, 0), (0, padding)))
        visibility = dataclasses.replace(visibility, query_segment_ids=ids)
    output, log_left = _attend(
        grouped,
        jnp.swapaxes(key, 1, 2),
        jnp.swapaxes(value, 1, 2),
        visibility,
        scale,
        (sizes.query, sizes.key),
    )
    output = jnp.transpose(output, (0, 3, 1, 2, 4))[:, :query_length]
    remainder = jnp.transpose(jnp.exp(log_left), (0, 3, 1, 2))[:, :query_length]
    return (
        output.reshape(batch, query_length, heads, -1).astype(value.dtype),
        remainder.reshape(batch, query_length, heads),
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _attend(query, key, value, visibility, scale, sizes):
    """Query `[B, G, R, Sq, d]`, key `[B, G, Sk, d]` to output and log-remainder `[B, G, R, Sq]`."""
    return _forward(query, key, value, visibility, scale, sizes)


def _forward(query, key, value, visibility, scale, sizes):
    batch, groups, repeats, query_length, _ = query.shape
    accumulation = jnp.promote_types(query.dtype, jnp.float32)

    def query_block(start):
        rows = _rows(query, start, sizes[0])

        def key_block(index, carry):
            output, log_left = carry
            keys, values, key_index, fresh = _key_block(key, value, index, sizes[1])
            seen = _seen(visibility, start, sizes[0], key_index, fresh, repeats)
            log_break, log_keep, _ = _break(rows, keys, seen, scale)
            nearer = _sum_nearer(log_keep)
            weights = jnp.exp(log_break + nearer + log_left[..., None])
            output += _dot("bgqk,bgkd->bgqd", weights.astype(values.dtype), values)
            return output, log_left + nearer[..., 0] + log_keep[..., 0]

        shape = (batch, groups, repeats * sizes[0])
        carry = jnp.zeros((*shape, value.shape[-1]), accumulation), jnp.zeros(shape, accumulation)
        return _walk(key_block, carry, visibility, start, sizes, key.shape[2])

    starts = jnp.arange(0, query_length, sizes[0])
    output, log_left = jax.lax.map(query_block, starts)
    return _join(output, repeats), _join(log_left, repeats)


def _forward_residuals(query, key, value, visibility, scale, sizes):
    output, log_left = _forward(query, key, value, visibility, scale, sizes)
    return (output, log_left), (query, key, value, visibility, output, log_left)


def _backward(scale, sizes, residuals, cotangents):
    query, key, value, visibility, output, log_left = residuals
    d_output, d_log_left = cotangents
    repeats, query_length = query.shape[2:4]
    accumulation = output.dtype
    # d_log_left is the cotangent of the remainder times the remainder.
    coefficients = jnp.sum(d_output * output, axis=-1) + d_log_left
    d_output = d_output.astype(value.dtype)

    def query_block(carry, start):
        rows = _rows(query, start, sizes[0])
        d_rows = _rows(d_output, start, sizes[0])

        def key_block(index, carry):
            d_query, d_key, d_value, log_left, rest = carry
            keys, values, key_index, fresh = _key_block(key, value, index, sizes[1])
            seen = _seen(visibility, start, sizes[0], key_index, fresh, repeats)
            log_break, log_keep, beta = _break(rows, keys, seen, scale)
            nearer = _sum_nearer(log_keep)
            weights = jnp.exp(log_break + nearer + log_left[..., None])
            a = weights * _dot("bgqd,bgkd->bgqk", d_rows, values)
            a_nearer = _sum_nearer(a)
            d_logits = (a - beta * (rest[..., None] - a_nearer)).astype(keys.dtype)
            d_query += _dot("bgqk,bgkd->bgqd", d_logits, keys)
            d_keys = _dot("bgqk,bgqd->bgkd", d_logits, rows)
            d_values = _dot("bgqk,bgqd->bgkd", weights.astype(d_rows.dtype), d_rows)
            d_key = _add_block(d_key, d_keys, key_index[0])
            d_value = _add_block(d_value, d_values, key_index[0])
            log_left = log_left + nearer[..., 0] + log_keep[..., 0]
            rest = rest - a_nearer[..., 0] - a[..., 0]
            return d_query, d_key, d_value, log_left, rest

        rest = _rows(coefficients[..., None], start, sizes[0])[..., 0]
        inner = jnp.zeros(rows.shape, accumulation), *carry, jnp.zeros_like(rest), rest
        d_query, d_key, d_value, _, _ = _walk(
            key_block, inner, visibility, start, sizes, key.shape[2]
        )
        return (d_key, d_value), d_query

    starts = jnp.arange(0, query_length, sizes[0])
    carry = jnp.zeros(key.shape, accumulation), jnp.zeros(value.shape, accumulation)
    (d_key, d_value), d_query = jax.lax.scan(query_block, carry, starts)
    d_query = (scale * _join(d_query, repeats)).astype(query.dtype)
    return d_query, (scale * d_key).astype(key.dtype), d_value.astype(value.dtype), None


_attend.defvjp(_forward_residuals, _backward)


def _walk(body, carry, visibility, query_start, sizes, key_length):
    """Runs `body` over the blocks of keys that a block of queries sees, the nearest first."""
    blocks = -(-key_length // sizes[1])
    stop = query_start + sizes[0] + visibility.offset - visibility.nearest
    stop = jnp.clip(-(-stop // sizes[1]), 0, blocks)
    start = 0
    if visibility.window is not None:
        start = query_start + visibility.offset - visibility.window + 1
        start = jnp.clip(start // sizes[1], 0, blocks)
    return jax.lax.fori_loop(
        0, jnp.maximum(stop - start, 0), lambda i, carry: body(stop - 1 - i, carry), carry
    )


def _rows(array, start, size):
    """The block of queries `[B, G, R, size, d]` as rows `[B, G, R * size, d]`."""
    block = jax.lax.dynamic_slice_in_dim(array, start, size, axis=3)
    return block.reshape(*block.shape[:2], -1, block.shape[-1])


def _join(blocks, repeats):
    """Blocks of rows `[blocks, B, G, R * size, ...]` as one array `[B, G, R, Sq, ...]`."""
    count, batch, groups, rows, *rest = blocks.shape
    blocks = blocks.reshape(count, batch, groups, repeats, rows // repeats, *rest)
    blocks = jnp.moveaxis(blocks, 0, 3)
    return blocks.reshape(batch, groups, repeats, -1, *rest)


def _key_block(key, value, index, size):
    """Keys and values of a block, their indices, and which of them no other block holds.

    The last block is moved back to end with the keys, which are then not copied to be padded.
    """
    start = jnp.minimum(index * size, key.shape[2] - size)
    keys = jax.lax.dynamic_slice_in_dim(key, start, size, axis=2)
    values = jax.lax.dynamic_slice_in_dim(value, start, size, axis=2)
    key_index = start + jnp.arange(size)
    return keys, values, key_index, key_index >= index * size


def _add_block(array, block, start):
    old = jax.lax.dynamic_slice_in_dim(array, start, block.shape[2], axis=2)
    return jax.lax.dynamic_update_slice_in_dim(array, old + block, start, axis=2)


def _seen(visibility, query_start, query_size, key_index, fresh, repeats):
    seen = visibility.mask(query_start + jnp.arange(query_size), key_index) & fresh
    batch = seen.shape[0]
    seen = jnp.broadcast_to(seen[:, None, None], (batch, 1, repeats, *seen.shape[1:]))
    return seen.reshape(batch, 1, -1, seen.shape[-1])


def _break(rows, keys, seen, scale):
    """Logarithms of `beta` and `1 - beta`, and `beta`."""
    logits = scale * _dot("bgqd,bgkd->bgqk", rows, keys)
    logits = jnp.clip(logits, -_LARGEST_LOGIT, _LARGEST_LOGIT)
    logits = jnp.where(seen, logits, -_LARGEST_LOGIT)
    small = jnp.exp(-jnp.abs(logits))
    shared = jnp.log1p(small)
    inverse = 1 / (1 + small)
    beta = jnp.where(logits > 0, inverse, small * inverse)
    return jnp.minimum(logits, 0) - shared, jnp.minimum(-logits, 0) - shared, beta


def _sum_nearer(x):
    """Sums over the keys of the block that are nearer, that is, that come later."""
    size = x.shape[-1]
    later = jnp.tril(jnp.ones((size, size), x.dtype), -1)
    return jnp.einsum("bgqk,kj->bgqj", x, later, precision=_HIGHEST)


def _dot(subscripts, x, y):
    return jnp.einsum(
        subscripts,
        x,
        y,
        precision=_HIGHEST,
        preferred_element_type=jnp.promote_types(x.dtype, jnp.float32),
    )
