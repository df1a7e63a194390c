"""Softmax attention on NVIDIA GPUs, by cuDNN through `jax.nn.dot_product_attention`.

cuDNN knows the diagonal and a window behind it. Segment ids and key masks it would need as an array
of `Sq * Sk`, which no implementation of this operation makes.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from pallas_kernels.attention.shared.case import Case
from pallas_kernels.attention.shared.masks import Visibility

_DTYPES = (jnp.bfloat16, jnp.float16)


def unsupported(case: Case | None, platform: str | None) -> str | None:
    """Says why cuDNN cannot run a case; see `pallas_kernels.implementations`.

    Which widths and which GPUs it takes depends on its version: jax is asked.
    """
    if platform not in (None, "gpu"):
        return f"cuDNN is for NVIDIA GPUs, and the platform is {platform!r}"
    if case is None:
        return None
    if case.log_sum:
        return "cuDNN through jax gives no log-sum-exp that gradients pass through"
    if case.query.dtype not in _DTYPES:
        return f"cuDNN takes bfloat16 and float16, and inputs are {case.query.dtype}"
    if case.segments or case.padding:
        return "cuDNN takes neither segment ids nor a key mask without an array of all pairs"
    if case.causal and case.offset != 0:
        return "cuDNN's diagonal begins at the first key: query_offset must be the number 0"
    if case.window is not None and not case.causal:
        return "cuDNN takes a window with causal attention only"
    if case.query.shape[-1] != case.value.shape[-1]:
        return "cuDNN takes keys and values of one width"
    if 0 in (*case.query.shape, *case.value.shape):
        return "cuDNN takes no empty arrays"
    visibility = Visibility(0, nearest=0 if case.causal else None, window=case.window)
    arrays = (jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (case.query, case.key, case.value))
    try:
        jax.eval_shape(functools.partial(softmax_attention, scale=1.0), *arrays, visibility)
    except (RuntimeError, NotImplementedError, ValueError) as error:
        return f"jax says: {error}"
    return None


def softmax_attention(
    query: Array, key: Array, value: Array, visibility: Visibility, *, scale: float
) -> Array:
    """Returns output `[B, Sq, H, dv]` (see the public op)."""
    return jax.nn.dot_product_attention(
        query, key, value, scale=scale, **_arguments(visibility), implementation="cudnn"
    )


def _arguments(visibility: Visibility) -> dict[str, Any]:
    """The rules as that function takes them."""
    window = visibility.window
    return {
        "is_causal": visibility.nearest is not None,
        # Keys behind the query's own and beyond it.
        "local_window_size": None if window is None else (window - 1, 0),
    }
