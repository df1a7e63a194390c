"""Activation functions by their config name."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from types import MappingProxyType

import jax
import jax.numpy as jnp

ACTIVATIONS: Mapping[str, Callable[[jax.Array], jax.Array]] = MappingProxyType(
    {
        "gelu": functools.partial(jax.nn.gelu, approximate=False),
        "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
        "silu": jax.nn.silu,
        "relu": jax.nn.relu,
        "relu_squared": lambda x: jnp.square(jax.nn.relu(x)),
        "tanh": jnp.tanh,
        "identity": lambda x: x,
    }
)
