"""Stick-breaking attention for TPUs, as Pallas (Mosaic) kernels."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from pallas_kernels.stickbreaking_attention import tpu_forward, tpu_layout
from pallas_kernels.stickbreaking_attention.implementations import Case
from pallas_kernels.stickbreaking_attention.masks import Visibility
from pallas_kernels.stickbreaking_attention.tpu_block_sizes import TpuBlockSizes, tpu_block_sizes


def unsupported(case: Case, platform: str) -> str | None:
    """Returns why the kernels cannot run a case on a platform, or None if they can."""
    if platform != "tpu":
        return f"it runs on TPUs, not on {platform}"
    if case.query.dtype == jnp.float64:
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
) -> tuple[jax.Array, jax.Array]:
    """Returns output `[B, Sq, H, dv]` and remainder `[B, Sq, H]` (see the public op).

    Args:
      query: see the public op.
      key: see the public op.
      value: see the public op.
      visibility: which keys a query sees.
      scale: of the logits.
      tolerance: of the early exit.
      sizes: block sizes; None takes those of `tpu_block_sizes`.
    """
    _, length, heads, width = query.shape
    key_length, groups = key.shape[1:3]
    dtype = value.dtype
    if dtype == jnp.float16:
        query, key, value = (x.astype(jnp.float32) for x in (query, key, value))
    if sizes is None:
        sizes = tpu_block_sizes(
            length * heads // groups,
            key_length,
            max(width, value.shape[-1]),
            query.dtype.itemsize,
        )
    walk = tpu_layout.walk(
        visibility,
        query_length=length,
        key_length=key_length,
        repeats=heads // groups,
        query_block=sizes.forward.query,
        key_block=sizes.forward.key,
    )
    rows = tpu_layout.rows_of_queries(query, groups, sizes.forward.query)
    keys = tpu_layout.blocks_of_keys(key, sizes.forward.key)
    values = jnp.swapaxes(tpu_layout.blocks_of_keys(value, sizes.forward.key), 3, 4)
    output, spent, _ = tpu_forward.forward(
        rows,
        keys,
        values,
        walk,
        scale=scale,
        tolerance=tolerance,
        block=sizes.forward.query,
        dtype=dtype,
    )
    output = tpu_layout.queries_of_rows(jnp.swapaxes(output, 2, 3), length, heads)
    remainder = tpu_layout.queries_of_rows(jnp.exp2(-spent), length, heads)
    return output, remainder
