"""Stick-breaking attention for TPUs, as Pallas (Mosaic) kernels.

`layout` says how the arrays are laid out, `tile` how a tile is computed, `forward` and
`backward` how tiles follow one another.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from pallas_kernels.attention.shared.block_sizes import BlockSizes
from pallas_kernels.attention.shared.case import Case
from pallas_kernels.attention.shared.masks import Visibility
from pallas_kernels.attention.stickbreaking.residuals import named
from pallas_kernels.attention.stickbreaking.tpu import layout
from pallas_kernels.attention.stickbreaking.tpu.backward import backward
from pallas_kernels.attention.stickbreaking.tpu.block_sizes import (
    TpuBlockSizes,
    keys_at_a_time,
    tpu_block_sizes,
)
from pallas_kernels.attention.stickbreaking.tpu.forward import forward

ON_ONE_DEVICE = True
"""Whether all heads of its arrays lie on one device; see `containment`."""

# Output, remainder and, with a tolerance, how many blocks of keys were visited.
_Rows = tuple[jax.Array, jax.Array, jax.Array | None]
_Residuals = tuple[jax.Array, jax.Array, jax.Array, Visibility, _Rows, jax.Array | None]


def unsupported(case: Case | None, platform: str | None) -> str | None:
    """Says why the kernels cannot run a case; see `pallas_kernels.implementations`."""
    if platform not in (None, "tpu"):
        return f"its kernels are for TPUs, and the platform is {platform!r}"
    if case is not None and case.query.dtype == jnp.float64:
        return "TPU kernels do not compute in float64"
    return None


def stickbreaking_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    visibility: Visibility,
    *,
    scale: float,
    tolerance: float = 0.0,
    sizes: TpuBlockSizes | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """Returns output `[B, Sq, H, dv]` and remainder `[B, Sq, H]` (see the public op).

    And, with a tolerance, the first key that queries reached, int32 `[B, Sq, H]`, else None.
    """
    sizes = sizes or _block_sizes(query, key, value)
    output, remainder, visited = attend_and_count(
        query, key, value, visibility, scale=scale, tolerance=tolerance, sizes=sizes
    )
    if visited is None:
        return output, remainder, None
    rows = layout.rows_of_queries(visited, key.shape[2], 1)
    farthest = _farthest(rows, query, key, visibility, sizes)
    return output, remainder, layout.queries_of_rows(farthest, *query.shape[1:3])


def attend_and_count(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    visibility: Visibility,
    *,
    scale: float,
    tolerance: float = 0.0,
    sizes: TpuBlockSizes | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """Returns output, remainder and, with a tolerance, how many blocks of keys rows visited.

    Args:
      query: see the public op.
      key: see the public op.
      value: see the public op.
      visibility: which keys a query sees.
      scale: of the logits.
      tolerance: of the early exit.
      sizes: block sizes; None takes those of `tpu_block_sizes`.

    Returns:
      Output and remainder as the public op; int32 `[B, Sq, H]` or None.
    """
    dtype = value.dtype
    sizes = sizes or _block_sizes(query, key, value)
    if dtype == jnp.float16:
        # There is no such type in the matrix unit; its numbers are exact in float32.
        query, key, value = (x.astype(jnp.float32) for x in (query, key, value))
    output, remainder, visited = _attend(query, key, value, visibility, scale, tolerance, sizes)
    return output.astype(dtype), remainder, visited


def _block_sizes(query: jax.Array, key: jax.Array, value: jax.Array) -> TpuBlockSizes:
    """Those for the dtype that the kernels get."""
    width = max(query.shape[-1], value.shape[-1])
    rows = query.shape[1] * query.shape[2] // key.shape[2]
    itemsize = 4 if value.dtype == jnp.float16 else value.dtype.itemsize
    return tpu_block_sizes(rows, key.shape[1], width, itemsize)


def _farthest(
    visited: jax.Array,
    query: jax.Array,
    key: jax.Array,
    visibility: Visibility,
    sizes: TpuBlockSizes,
) -> jax.Array:
    """The first key that rows reached in the forward pass, int32 `[B, G, rows]` like `visited`."""
    filled = layout.fill(visited, 2, sizes.forward.query)
    walk = _walk(query, key, visibility, sizes.forward)
    farthest = layout.reached(walk, filled, sizes.forward.query, sizes.forward.key)
    return farthest[:, :, : visited.shape[2]]


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def _attend(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    visibility: Visibility,
    scale: float,
    tolerance: float,
    sizes: TpuBlockSizes,
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    rows, _ = _forward(query, key, value, visibility, scale, tolerance, sizes)
    return _of_queries(rows, query)


def _forward(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    visibility: Visibility,
    scale: float,
    tolerance: float,
    sizes: TpuBlockSizes,
    *,
    with_error: bool = False,
) -> tuple[_Rows, jax.Array | None]:
    """Returns results for the rows of queries, unfilled, and what rounding took from the output."""
    groups = key.shape[2]
    block = sizes.forward
    output, error, spent, visited = forward(
        layout.rows_of_queries(query, groups, block.query),
        layout.blocks_of_keys(key, block.key),
        jnp.swapaxes(layout.blocks_of_keys(value, block.key), 3, 4),
        _walk(query, key, visibility, block),
        scale=scale,
        tolerance=tolerance,
        block=block.query,
        with_error=with_error,
    )
    rows = query.shape[1] * query.shape[2] // groups
    results = output, jnp.exp2(-spent), visited
    return jax.tree.map(lambda x: x[:, :, :rows], (results, error))


def _of_queries(rows: _Rows, query: jax.Array) -> _Rows:
    output, remainder, visited = rows
    length, heads = query.shape[1:3]
    back = functools.partial(layout.queries_of_rows, length=length, heads=heads)
    return back(output), back(remainder), None if visited is None else back(visited)


def _walk(
    query: jax.Array,
    key: jax.Array,
    visibility: Visibility,
    block: BlockSizes,
    farthest: jax.Array | None = None,
) -> layout.Walk:
    return layout.walk(
        visibility,
        query_length=query.shape[1],
        key_length=key.shape[1],
        repeats=query.shape[2] // key.shape[2],
        query_block=block.query,
        key_block=block.key,
        farthest=farthest,
    )


def _attend_forward(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    visibility: Visibility,
    scale: float,
    tolerance: float,
    sizes: TpuBlockSizes,
) -> tuple[tuple[jax.Array, jax.Array, jax.Array | None], _Residuals]:
    # The backward pass needs the output before it is rounded: what it subtracts its own sums from.
    # What rounding took is kept beside it, where float32 would have to be rounded in a pass of its
    # own. All by rows, where two heads are no padding of eight.
    query_rows = named(layout.rows_of_queries(query, key.shape[2], 1))
    query = layout.queries_of_rows(query_rows, *query.shape[1:3])
    with_error = value.dtype != jnp.float32
    rows, error = jax.tree.map(
        named,
        _forward(query, key, value, visibility, scale, tolerance, sizes, with_error=with_error),
    )
    return _of_queries(rows, query), (query, key, value, visibility, rows, error)


def _attend_backward(
    scale: float,
    tolerance: float,
    sizes: TpuBlockSizes,
    residuals: _Residuals,
    cotangents: tuple[jax.Array, jax.Array, object],
) -> tuple[jax.Array, jax.Array, jax.Array, None]:
    del tolerance
    query, key, value, visibility, (output, remainder, visited), error = residuals
    d_output, d_remainder, _ = cotangents
    length, heads = query.shape[1:3]
    key_length, groups = key.shape[1:3]
    block = sizes.backward
    # Whatever is computed here is computed by rows: beside them, arrays by heads are padded.
    d_output = layout.rows_of_queries(d_output.astype(value.dtype), groups, 1)
    d_remainder = layout.rows_of_queries(d_remainder, groups, 1)
    largest = jnp.max(jnp.abs(value), axis=(1, 3)).astype(jnp.float32)
    fill = functools.partial(layout.fill, axis=2, multiple=block.query)
    rows = layout.rows_of_queries(query, groups, block.query)
    d_rows, rest, d_remainder = map(fill, (d_output, d_remainder * remainder, d_remainder))
    parts_of_output = tuple(fill(x) for x in (output, error) if x is not None)
    spent = jnp.zeros_like(rest)
    farthest = None
    if visited is not None:
        farthest = _farthest(visited, query, key, visibility, sizes)
    chunk = keys_at_a_time(key_length, block.key, query.shape[-1] + value.shape[-1])
    # Rounded once: by the kernel if it sees all keys, else when those of all calls are added.
    d_query_dtype = query.dtype if chunk >= key_length else jnp.float32
    d_query = jnp.zeros((), d_query_dtype)
    d_keys, d_values = [], []
    for start in reversed(range(0, key_length, chunk)):
        part = slice(start, min(start + chunk, key_length))
        walk = _walk(
            query,
            key[:, part],
            layout.part_of_keys(visibility, part),
            block,
            None if farthest is None else farthest - start,
        )
        d_rows_query, d_key, d_value, spent, rest = backward(
            rows,
            d_rows,
            parts_of_output,
            layout.blocks_of_keys(key[:, part], block.key),
            layout.blocks_of_keys(value[:, part], block.key),
            spent,
            rest,
            d_remainder,
            largest,
            walk,
            scale=scale,
            block=block.query,
            d_query_dtype=d_query_dtype,
        )
        parts_of_output = ()
        d_query += d_rows_query
        d_key, d_value = (scale * d_key).astype(key.dtype), d_value.astype(value.dtype)
        d_keys.append(layout.keys_of_blocks(d_key, part.stop - part.start))
        d_values.append(layout.keys_of_blocks(d_value, part.stop - part.start))
    return (
        layout.queries_of_rows(d_query.astype(query.dtype), length, heads),
        jnp.concatenate(d_keys[::-1], axis=1),
        jnp.concatenate(d_values[::-1], axis=1),
        None,
    )


_attend.defvjp(_attend_forward, _attend_backward)
