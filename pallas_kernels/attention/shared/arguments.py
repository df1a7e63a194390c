"""Checks of arguments; stick-breaking and softmax attention share most of them."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.attention.shared.masks import Visibility

_DTYPES = ("float16", "bfloat16", "float32", "float64")
# What positions can be, int32, as are their sums.
_FARTHEST = 2**31 - 1


def checked_visibility(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    *,
    query_segment_ids: jax.Array | None,
    key_segment_ids: jax.Array | None,
    key_mask: jax.Array | None,
    query_offset: int | jax.Array | None,
    window: int | None,
    nearest: int | None,
) -> Visibility:
    """Returns the rules of a call whose arguments fit.

    Offset and window are brought to what they mean for these lengths, so that no sum of positions
    leaves int32.

    Raises:
      ValueError: an argument does not fit; the message names it.
    """
    check_arrays(query, key, value)
    batch, query_length, key_length = *query.shape[:2], key.shape[1]
    shapes = f"query {query.shape}, key {key.shape}, value {value.shape}"
    if (query_segment_ids is None) != (key_segment_ids is None):
        missing = "query_segment_ids" if query_segment_ids is None else "key_segment_ids"
        raise ValueError(f"segment ids are needed for queries and keys: {missing} is missing")
    for name, array, length, kind, kind_name in (
        ("query_segment_ids", query_segment_ids, query_length, jnp.integer, "integer"),
        ("key_segment_ids", key_segment_ids, key_length, jnp.integer, "integer"),
        ("key_mask", key_mask, key_length, jnp.bool_, "bool"),
    ):
        if array is None:
            continue
        if array.shape != (batch, length):
            raise ValueError(f"{name} must be {(batch, length)}, got {array.shape} with {shapes}")
        if not jnp.issubdtype(array.dtype, kind):
            raise ValueError(f"{name} must be {kind_name}, got {array.dtype}")
    if query_length + key_length > _FARTHEST // 4:
        raise ValueError(f"query and key are too long for positions in int32, got {shapes}")
    offset, window = _brought_near(query_offset, window, query_length, key_length)
    return Visibility(
        offset=offset,
        query_segment_ids=query_segment_ids,
        key_segment_ids=key_segment_ids,
        key_mask=key_mask,
        nearest=nearest,
        window=window,
    )


def check_arrays(query: jax.Array, key: jax.Array, value: jax.Array) -> None:
    """Raises a ValueError if these cannot be query, key and value of an attention."""
    shapes = f"query {query.shape}, key {key.shape}, value {value.shape}"
    dtypes = f"query {query.dtype}, key {key.dtype}, value {value.dtype}"
    if not query.ndim == key.ndim == value.ndim == 4:
        raise ValueError(f"query, key and value must be [B, S, heads, width], got {shapes}")
    if not query.dtype == key.dtype == value.dtype:
        raise ValueError(f"query, key and value must share one floating dtype, got {dtypes}")
    if query.dtype.name not in _DTYPES:
        raise ValueError(
            f"query, key and value must be of float16, bfloat16, float32 or float64, got {dtypes}"
        )
    heads, groups = query.shape[2], key.shape[2]
    if key.shape[:3] != value.shape[:3]:
        raise ValueError(f"key and value must agree in batch, length and heads, got {shapes}")
    if query.shape[0] != key.shape[0]:
        raise ValueError(f"query and key must have the same batch size, got {shapes}")
    if query.shape[3] != key.shape[3]:
        raise ValueError(f"query and key must have the same width, got {shapes}")
    if heads % groups if groups else heads:
        raise ValueError(f"the query heads must be a multiple of the key heads, got {shapes}")


def checked_scale(scale: float | None, width: int) -> float:
    """The factor of the logits; by default `1 / sqrt(width)`.

    Raises:
      ValueError: it is no finite number.
    """
    if scale is None:
        return 1 / math.sqrt(max(width, 1))
    if isinstance(scale, jax.core.Tracer):
        raise ValueError("scale must be a number of Python's: multiply query by what is traced")
    if not math.isfinite(scale):
        raise ValueError(f"scale must be finite, got {scale!r}")
    return float(scale)


def _brought_near(
    offset: int | jax.Array | None, window: int | None, queries: int, keys: int
) -> tuple[int | jax.Array, int | None]:
    """Offset and window that mean the same for so many queries and keys, and are no larger."""
    if window is not None:
        if isinstance(window, bool) or not isinstance(window, int | np.integer):
            raise ValueError(f"window must be an integer of Python's, got {window!r}")
        if window < 1:
            raise ValueError(f"window must be at least 1, got {window}")
        window = int(window)
    if offset is None:
        offset = keys - queries
    if jnp.ndim(offset) or not jnp.issubdtype(_dtype(offset), jnp.integer):
        raise ValueError(f"query_offset must be an integer scalar, got {offset!r}")
    if isinstance(offset, jax.Array):
        if window is not None and window > _FARTHEST - 2 * (queries + keys):
            window = None
        # From here on all keys are in the past, and out of the window.
        offset = jnp.minimum(_at_least_int32(offset), keys + (window or 1))
        if jnp.issubdtype(offset.dtype, jnp.signedinteger):
            offset = jnp.maximum(offset, -queries)
        return offset.astype(jnp.int32), window
    offset = int(offset)
    if window is not None and window >= offset + queries:
        window = None  # Key 0 lies in the window of the last query.
    # Beyond the keys, what counts is how far the window reaches into them.
    beyond = max(offset - keys - 1, 0)
    if window is not None:
        window = max(window - beyond, 1)
    return max(offset - beyond, -queries), window


def _dtype(scalar: int | jax.Array) -> Any:
    # Python's integers are of any size, and no array's dtype holds all of them.
    return np.dtype(int) if type(scalar) is int else jnp.result_type(scalar)


def _at_least_int32(scalar: jax.Array) -> jax.Array:
    return scalar.astype(jnp.int32) if scalar.dtype.itemsize < 4 else scalar


def check_tolerance(tolerance: float) -> None:
    """Raises a ValueError if this cannot be the tolerance of an early exit."""
    if not isinstance(tolerance, int | float) or not 0 <= tolerance < 1:
        raise ValueError(
            "tolerance must be a number of Python's from 0 (no early exit) to below 1, "
            f"got {tolerance!r}"
        )
