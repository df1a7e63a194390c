"""Checks of arguments; stick-breaking and softmax attention share most of them."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def check_arguments(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    query_ids: jax.Array | None,
    key_ids: jax.Array | None,
    key_mask: jax.Array | None,
    query_offset: int | jax.Array | None,
    window: int | None,
) -> None:
    """Raises a ValueError that names the first argument of an attention that does not fit."""
    shapes = f"query {query.shape}, key {key.shape}, value {value.shape}"
    if not query.ndim == key.ndim == value.ndim == 4:
        raise ValueError(f"query, key and value must be [B, S, heads, width], got {shapes}")
    if not query.dtype == key.dtype == value.dtype or not jnp.issubdtype(query.dtype, jnp.floating):
        raise ValueError(
            "query, key and value must share one floating dtype, got "
            f"query {query.dtype}, key {key.dtype}, value {value.dtype}"
        )
    batch, query_length, heads, width = query.shape
    key_batch, key_length, groups, key_width = key.shape
    if key.shape[:3] != value.shape[:3]:
        raise ValueError(f"key and value must agree in batch, length and heads, got {shapes}")
    if batch != key_batch:
        raise ValueError(f"query and key must have the same batch size, got {shapes}")
    if width != key_width:
        raise ValueError(f"query and key must have the same width, got {shapes}")
    if groups == 0 or heads % groups:
        raise ValueError(f"the query heads must be a multiple of the key heads, got {shapes}")
    if (query_ids is None) != (key_ids is None):
        missing = "query_segment_ids" if query_ids is None else "key_segment_ids"
        raise ValueError(f"segment ids are needed for queries and keys: {missing} is missing")
    for name, array, length, kind, kind_name in (
        ("query_segment_ids", query_ids, query_length, jnp.integer, "integer"),
        ("key_segment_ids", key_ids, key_length, jnp.integer, "integer"),
        ("key_mask", key_mask, key_length, jnp.bool_, "bool"),
    ):
        if array is None:
            continue
        if array.shape != (batch, length):
            raise ValueError(f"{name} must be {(batch, length)}, got {array.shape} with {shapes}")
        if not jnp.issubdtype(array.dtype, kind):
            raise ValueError(f"{name} must be {kind_name}, got {array.dtype}")
    if query_offset is not None and (
        jnp.ndim(query_offset) or not jnp.issubdtype(jnp.result_type(query_offset), jnp.integer)
    ):
        raise ValueError(f"query_offset must be an integer scalar, got {query_offset!r}")
    if window is not None and window < 1:
        raise ValueError(f"window must be at least 1, got {window}")


def check_tolerance(tolerance: float) -> None:
    """Raises a ValueError if this cannot be the tolerance of an early exit."""
    if not isinstance(tolerance, int | float) or not 0 <= tolerance < 1:
        raise ValueError(
            "tolerance must be a number of Python's from 0 (no early exit) to below 1, "
            f"got {tolerance!r}"
        )
