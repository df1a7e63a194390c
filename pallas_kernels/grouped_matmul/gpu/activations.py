"""Activations and their slopes in operations that a GPU kernel has.

The slope stands beside the value because a backward pass wants both, and they share their costly
part. Derivatives by jax's own rules would do, but for an addition that Mosaic GPU has no rule for.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from pallas_kernels.grouped_matmul.activations import ACTIVATIONS

ValueAndSlope = Callable[[Array], tuple[Array, Array]]


def _gelu(x: Array) -> tuple[Array, Array]:
    """By x Phi(x), with Phi the normal distribution."""
    below = 0.5 + 0.5 * jax.lax.erf(x * math.sqrt(0.5))
    density = jnp.exp(x * x * -0.5) * (1 / math.sqrt(2 * math.pi))
    return x * below, below + x * density


def _gelu_tanh(x: Array) -> tuple[Array, Array]:
    """By x (1 + tanh u) / 2 with u = sqrt(2 / pi) (x + 0.044715 x^3)."""
    scale, cubic = math.sqrt(2 / math.pi), 0.044715
    square = x * x
    bent = jnp.tanh(x * (square * (scale * cubic) + scale))
    half = 0.5 + 0.5 * bent
    inner = square * (3 * scale * cubic) + scale
    return x * half, half + x * inner * (0.5 - 0.5 * bent * bent)


def _relu(x: Array) -> tuple[Array, Array]:
    positive = x > 0
    return jnp.where(positive, x, jnp.zeros_like(x)), positive.astype(x.dtype)


def _silu(x: Array) -> tuple[Array, Array]:
    """By x s with s = 1 / (1 + exp(-x)), in a form that cannot overflow."""
    sigmoid = 0.5 + 0.5 * jnp.tanh(x * 0.5)
    return x * sigmoid, sigmoid * (1 + x * (1 - sigmoid))


_BY_NAME: dict[str, ValueAndSlope] = {
    "gelu": _gelu,
    "gelu_tanh": _gelu_tanh,
    "relu": _relu,
    "silu": _silu,
}


def find_kernel_activation(activation: Callable[[Array], Array]) -> ValueAndSlope | None:
    """The activation for a kernel, or None for a function that has no name in `ACTIVATIONS`."""
    for name, known in ACTIVATIONS.items():
        if activation is known:
            return _BY_NAME[name]
    return None
