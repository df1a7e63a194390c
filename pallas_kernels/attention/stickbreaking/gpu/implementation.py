"""Stick-breaking attention on Hopper GPUs, by Pallas kernels for Mosaic GPU.

See `forward` for the kernel and `registers` for how a stick is broken in the registers of a
warpgroup.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp

from pallas_kernels.attention.shared.case import Case
from pallas_kernels.attention.shared.masks import Visibility
from pallas_kernels.attention.stickbreaking.gpu import registers
from pallas_kernels.attention.stickbreaking.gpu.block_sizes import (
    ROWS_AT_A_TIME,
    GPUBlockSizes,
    d_key_value_block_sizes,
    d_query_block_sizes,
    forward_block_sizes,
)
from pallas_kernels.attention.stickbreaking.gpu.d_key_value import d_key_value
from pallas_kernels.attention.stickbreaking.gpu.d_query import d_query
from pallas_kernels.attention.stickbreaking.gpu.forward import forward
from pallas_kernels.attention.stickbreaking.gpu.tiles import BLOCK_ROWS, ROWS_PER_GROUP, Problem
from pallas_kernels.attention.stickbreaking.residuals import named
from pallas_kernels.target import no_hopper_gpu

_LARGEST_WIDTH = 256
_DTYPES = (jnp.bfloat16, jnp.float16)
# Output, remainder and, with a tolerance, the first key that queries reached.
_Results = tuple[jax.Array, jax.Array, jax.Array | None]
_Residuals = tuple[jax.Array, jax.Array, jax.Array, Visibility, jax.Array, jax.Array, jax.Array]


def unsupported(case: Case | None, platform: str | None) -> str | None:
    """Says why the kernels cannot run a case; see `pallas_kernels.implementations`."""
    if platform not in (None, "gpu"):
        return f"its kernels are for NVIDIA's Hopper GPUs, and the platform is {platform!r}"
    if (other := no_hopper_gpu()) is not None:
        return other
    if case is None:
        return None
    if case.query.dtype not in _DTYPES:
        return (
            f"{case.query.dtype} inputs are not supported: Hopper's matrix unit would round them "
            "to TF32; bfloat16 and float16 are exact there"
        )
    width = max(case.query.shape[-1], case.value.shape[-1])
    if width > _LARGEST_WIDTH:
        return (
            f"heads of width {width} do not fit into the registers of a warpgroup; the largest "
            f"width is {_LARGEST_WIDTH}"
        )
    return None


def stickbreaking_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    visibility: Visibility,
    *,
    scale: float,
    tolerance: float = 0.0,
) -> _Results:
    """Returns output `[B, Sq, H, dv]` and remainder `[B, Sq, H]` (see the public op).

    And, with a tolerance, the first key that queries reached, int32 `[B, Sq, H]`, else None.
    """
    return _attend(query, key, value, visibility, scale, tolerance)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _attend(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    visibility: Visibility,
    scale: float,
    tolerance: float,
) -> _Results:
    """Output `[B, Sq, H, dv]` in the dtype of the values, remainder and first keys `[B, Sq, H]`."""
    results, _ = _attend_forward(query, key, value, visibility, scale, tolerance)
    return results


def _attend_forward(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    visibility: Visibility,
    scale: float,
    tolerance: float,
) -> tuple[_Results, _Residuals]:
    query = named(query)
    length, value_width = query.shape[1], value.shape[-1]
    width = max(query.shape[-1], value_width)
    problem, offset, ids = _problem(
        query, key, visibility, scale, tolerance, forward_block_sizes(width)
    )
    results = forward(
        problem,
        _rows(_padded_width(query), problem.repeats),
        _key_blocks(_padded_width(key), problem.keys),
        _key_blocks(_padded_width(value), problem.keys),
        offset,
        *ids,
    )
    output, remainder, counts = jax.tree.map(named, results)
    heads = (
        _heads(output[..., :value_width].astype(value.dtype), length, problem.repeats),
        _heads(jnp.swapaxes(remainder, 1, 2), length, problem.repeats),
        _reached(counts, problem, offset, length) if tolerance else None,
    )
    return heads, (query, key, value, visibility, output, remainder, counts)


def _attend_backward(
    scale: float,
    tolerance: float,
    residuals: _Residuals,
    cotangents: tuple[jax.Array, jax.Array, object],
) -> tuple[jax.Array, jax.Array, jax.Array, None]:
    query, key, value, visibility, output, remainder, counts = residuals
    length, width = query.shape[1], query.shape[-1]
    value_width = value.shape[-1]
    widest = max(width, value_width)
    problem, offset, ids = _problem(
        query, key, visibility, scale, tolerance, d_query_block_sizes(widest)
    )
    # All are given one width here, so that one code adds to the gradients of keys and of values.
    queries = _rows(_padded(query, 3, _multiple(widest)), problem.repeats)
    keys = _key_blocks(_padded(key, 3, _multiple(widest)), problem.keys)
    values = _key_blocks(_padded(value, 3, _multiple(widest)), problem.keys)
    d_output = _rows(_padded(cotangents[0], 3, _multiple(widest)), problem.repeats)
    d_remainder = jnp.swapaxes(_rows(cotangents[1][..., None], problem.repeats)[..., 0], 1, 2)

    exact = d_output[..., :value_width].astype(jnp.float32)
    total = jnp.swapaxes(jnp.sum(exact * output[..., :value_width], axis=-1), 1, 2)
    total += d_remainder * remainder
    largest = jnp.max(jnp.abs(value.astype(jnp.float32)), axis=(1, 3))
    bound = jnp.swapaxes(jnp.sum(jnp.abs(exact), axis=-1), 1, 2)
    bound *= jnp.repeat(largest, bound.shape[1] // largest.shape[1], axis=1)[..., None]
    bound = jnp.maximum(bound, jnp.abs(d_remainder))

    stages = d_key_value_block_sizes(widest).stages
    chunk = _rows_at_a_time(queries.shape[1])

    def add_rows(index: jax.Array, sums: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        """Adds the gradients that come from a chunk of the rows."""
        start = index * chunk
        own = functools.partial(_cut, start=start, size=chunk)
        own_queries, own_d_output = own(queries, axis=1), own(d_output, axis=1)
        own_bound = own(bound, axis=2)
        own_counts = _cut(counts, start // BLOCK_ROWS, chunk // BLOCK_ROWS, axis=2)
        own_ids = (own(ids[0], axis=1), ids[1]) if ids else ()
        # Rows share positions only where there is one chunk.
        own_offset = offset + start
        d_own_queries, sticks, rests = d_query(
            problem,
            own_queries,
            keys,
            values,
            own_d_output,
            own(total, axis=2),
            own_bound,
            own_counts,
            own_offset,
            *own_ids,
        )
        d_keys, d_values = d_key_value(
            dataclasses.replace(problem, stages=stages),
            own_queries,
            keys,
            values,
            own_d_output,
            sticks,
            rests,
            own_bound,
            own_counts,
            own_offset,
            *own_ids,
        )
        d_queries = (scale * d_own_queries[..., :width]).astype(query.dtype)
        d_queries = jax.lax.dynamic_update_slice_in_dim(sums[0], d_queries, start, axis=1)
        return d_queries, sums[1] + d_keys, sums[2] + d_values

    start = (
        jnp.zeros((*queries.shape[:3], width), query.dtype),
        jnp.zeros(keys.shape, jnp.float32),
        jnp.zeros(values.shape, jnp.float32),
    )
    chunks = queries.shape[1] // chunk
    d_queries, d_keys, d_values = (
        jax.lax.fori_loop(0, chunks, add_rows, start)
        if chunks > 1
        else add_rows(jnp.int32(0), start)
    )
    d_queries = _heads(d_queries, length, problem.repeats)
    d_keys = registers.restore_keys(scale * d_keys, problem.keys)
    d_values = registers.restore_keys(d_values, problem.keys)
    return (
        d_queries,
        d_keys[:, : key.shape[1], :, :width].astype(key.dtype),
        d_values[:, : key.shape[1], :, :value_width].astype(value.dtype),
        None,
    )


_attend.defvjp(_attend_forward, _attend_backward)


def _reached(counts: jax.Array, problem: Problem, offset: jax.Array, length: int) -> jax.Array:
    """The first key that queries reached, int32 `[B, Sq, H]`, from counts `[B, rows H, blocks]`."""
    first = jnp.arange(counts.shape[2], dtype=jnp.int32) * BLOCK_ROWS
    _, high = problem.key_blocks(first, BLOCK_ROWS, offset)
    rows = jnp.repeat((high - counts) * problem.keys, BLOCK_ROWS, axis=2)
    return _heads(jnp.swapaxes(rows, 1, 2), length, problem.repeats)


def _problem(
    query: jax.Array,
    key: jax.Array,
    visibility: Visibility,
    scale: float,
    tolerance: float,
    sizes: GPUBlockSizes,
) -> tuple[Problem, jax.Array, tuple[jax.Array, ...]]:
    """Returns what a kernel is compiled for, the offset as an array, and ids of rows and keys."""
    batch, length, heads, _ = query.shape
    assert visibility.nearest is not None, "the public op looks back only"
    # Few queries of heads that share keys become rows of one tile.
    repeats = heads // key.shape[2]
    repeats = repeats if length * repeats <= ROWS_PER_GROUP else 1
    ids = _ids(visibility, batch, length, key.shape[1], repeats, sizes.keys)
    problem = Problem(
        scale=scale,
        nearest=visibility.nearest,
        window=visibility.window,
        tolerance=tolerance,
        key_length=key.shape[1],
        repeats=repeats,
        segments=bool(ids),
        keys=sizes.keys,
        stages=sizes.stages,
    )
    return problem, jnp.asarray(visibility.offset, jnp.int32).reshape(1), ids


def _ids(
    visibility: Visibility, batch: int, queries: int, keys: int, repeats: int, block: int
) -> tuple[jax.Array, ...]:
    """Ids of rows and of keys in blocks, which must agree; none if there is no need for any."""
    query_ids, key_ids = visibility.query_segment_ids, visibility.key_segment_ids
    if key_ids is None:
        if visibility.key_mask is None:
            return ()
        query_ids, key_ids = (jnp.zeros((batch, length), jnp.int32) for length in (queries, keys))
    assert query_ids is not None
    query_ids, key_ids = query_ids.astype(jnp.int32), key_ids.astype(jnp.int32)
    if visibility.key_mask is not None:
        # An id that no query has: below the least, or above the largest should there be no such.
        least, largest = query_ids.min(), query_ids.max()
        unused = jnp.where(least > jnp.iinfo(jnp.int32).min, least - 1, largest + 1)
        key_ids = jnp.where(visibility.key_mask, key_ids, unused)
    query_ids = jnp.repeat(query_ids, repeats, axis=1)
    query_ids = _padded(query_ids, 1, _rows_at_a_time(query_ids.shape[1]))
    return query_ids, _key_blocks(key_ids, block)


def _rows(array: jax.Array, folded: int) -> jax.Array:
    """Queries `[B, S, H, ...]` as rows `[B, S * folded, H / folded, ...]`, padded to chunks."""
    batch, length, heads, *rest = array.shape
    if folded > 1:
        array = array.reshape(batch, length, heads // folded, folded, *rest)
        array = jnp.swapaxes(array, 2, 3)
        array = array.reshape(batch, length * folded, heads // folded, *rest)
    return _padded(array, 1, _rows_at_a_time(array.shape[1]))


def _rows_at_a_time(rows: int) -> int:
    """Rows of a chunk of the backward pass: blocks, in chunks of one size."""
    chunks = -(-rows // ROWS_AT_A_TIME)
    return BLOCK_ROWS * -(-rows // (BLOCK_ROWS * chunks))


def _cut(array: jax.Array, start: jax.Array, size: int, axis: int) -> jax.Array:
    return jax.lax.dynamic_slice_in_dim(array, start, size, axis)


def _heads(array: jax.Array, length: int, folded: int) -> jax.Array:
    """The inverse of `_rows`."""
    array = array[:, : length * folded]
    if folded == 1:
        return array
    batch, _, heads, *rest = array.shape
    array = jnp.swapaxes(array.reshape(batch, length, folded, heads, *rest), 2, 3)
    return array.reshape(batch, length, heads * folded, *rest)


def _key_blocks(array: jax.Array, size: int) -> jax.Array:
    """`[B, S, ...]` padded to blocks of keys, each in the order of the kernels."""
    return registers.permute_keys(_padded(array, 1, size), size)


def _padded_width(array: jax.Array) -> jax.Array:
    return _padded(array, array.ndim - 1, 64)


def _multiple(width: int) -> int:
    """The multiple of 64 that holds a width."""
    return -(-width // 64) * 64


def _padded(array: jax.Array, axis: int, multiple: int) -> jax.Array:
    missing = -array.shape[axis] % multiple
    if not missing:
        return array
    padding = [(0, 0)] * array.ndim
    padding[axis] = (0, missing)
    return jnp.pad(array, padding)
