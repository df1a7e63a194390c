"""Stick-breaking attention on Hopper GPUs, by Pallas kernels for Mosaic GPU.

See `gpu_forward` for the kernel and `gpu_registers` for how a stick is broken in the registers of a
warpgroup.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels.stickbreaking_attention import gpu_registers, xla
from pallas_kernels.stickbreaking_attention.gpu_block_sizes import forward_block_sizes
from pallas_kernels.stickbreaking_attention.gpu_forward import forward
from pallas_kernels.stickbreaking_attention.gpu_tiles import BLOCK_ROWS, ROWS_PER_GROUP, Problem
from pallas_kernels.stickbreaking_attention.implementations import Case
from pallas_kernels.stickbreaking_attention.masks import Visibility

_LARGEST_WIDTH = 256
_DTYPES = (jnp.bfloat16, jnp.float16)
_Results = tuple[jax.Array, jax.Array]


def unsupported(case: Case, platform: str) -> str | None:
    """Returns why the kernels cannot run a case on a platform, or None if they can."""
    if platform != "cuda":
        return f"its kernels are for NVIDIA's Hopper GPUs, and the platform is {platform}"
    capability = _compute_capability()
    if capability is not None and capability.split(".")[0] != "9":
        return (
            "its kernels use matrix instructions that only Hopper GPUs have (compute capability "
            f"9.0), and this GPU has {capability}"
        )
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
    """Returns output `[B, Sq, H, dv]` and remainder `[B, Sq, H]` (see the public op)."""
    if 0 in query.shape or 0 in value.shape:
        output = jnp.zeros((*query.shape[:3], value.shape[-1]), value.dtype)
        return output, jnp.ones(query.shape[:3], jnp.float32)
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
    output, remainder = _forward(query, key, value, visibility, scale, tolerance)
    return output.astype(value.dtype), remainder


def _attend_forward(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    visibility: Visibility,
    scale: float,
    tolerance: float,
) -> tuple[_Results, Any]:
    results = _attend(query, key, value, visibility, scale, tolerance)
    return results, (query, key, value, visibility)


def _attend_backward(
    scale: float, tolerance: float, residuals: Any, cotangents: _Results
) -> tuple[jax.Array, jax.Array, jax.Array, None]:
    query, key, value, visibility = residuals
    run = functools.partial(
        xla.stickbreaking_attention, visibility=visibility, scale=scale, tolerance=tolerance
    )
    _, pull = jax.vjp(run, query, key, value)
    return *pull(cotangents), None


_attend.defvjp(_attend_forward, _attend_backward)


def _forward(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    visibility: Visibility,
    scale: float,
    tolerance: float,
) -> _Results:
    """Output `[B, Sq, H, dv]`, not rounded, and remainder `[B, Sq, H]`."""
    length, heads, width = query.shape[1:]
    groups, value_width = value.shape[2:]
    repeats = heads // groups
    # Few queries of heads that share keys become rows of one tile.
    folded = repeats if length * repeats <= ROWS_PER_GROUP else 1
    sizes = forward_block_sizes(max(width, value_width))
    assert visibility.nearest is not None, "the public op looks back only"
    problem = Problem(
        scale=scale,
        nearest=visibility.nearest,
        window=visibility.window,
        tolerance=tolerance,
        key_length=key.shape[1],
        repeats=folded,
        segments=visibility.key_segment_ids is not None or visibility.key_mask is not None,
        keys=sizes.keys,
        stages=sizes.stages,
    )
    output, remainder, _ = forward(
        problem,
        _rows(_padded_width(query), folded),
        _key_blocks(_padded_width(key), sizes.keys),
        _key_blocks(_padded_width(value), sizes.keys),
        jnp.asarray(visibility.offset, jnp.int32).reshape(1),
        *_ids(visibility, query.shape[0], length, key.shape[1], folded, sizes.keys),
    )
    output = _heads(output, length, folded)[..., :value_width]
    remainder = _heads(jnp.swapaxes(remainder, 1, 2), length, folded)
    return output, remainder


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
    return _padded(query_ids, 1, BLOCK_ROWS), _key_blocks(key_ids, block)


def _rows(array: jax.Array, folded: int) -> jax.Array:
    """Queries `[B, S, H, ...]` as rows `[B, S * folded, H / folded, ...]`, padded to blocks."""
    batch, length, heads, *rest = array.shape
    if folded > 1:
        array = array.reshape(batch, length, heads // folded, folded, *rest)
        array = jnp.swapaxes(array, 2, 3)
        array = array.reshape(batch, length * folded, heads // folded, *rest)
    return _padded(array, 1, BLOCK_ROWS)


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
    return gpu_registers.permute_keys(_padded(array, 1, size), size)


def _padded_width(array: jax.Array) -> jax.Array:
    return _padded(array, array.ndim - 1, 64)


def _padded(array: jax.Array, axis: int, multiple: int) -> jax.Array:
    missing = -array.shape[axis] % multiple
    if not missing:
        return array
    padding = [(0, 0)] * array.ndim
    padding[axis] = (0, missing)
    return jnp.pad(array, padding)


def _compute_capability() -> str | None:
    """That of the GPU at hand; None if there is none (the kernels are compiled ahead of time)."""
    if jax.default_backend() != "gpu":
        return None
    return str(jax.local_devices()[0].compute_capability)
