"""Activations by name."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
from jax import Array

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
}


def find_activation(activation: str | Callable[[Array], Array]) -> Callable[[Array], Array]:
    """The function of that name, or the callable itself.

    Raises:
        ValueError: no activation has that name.
    """
    if callable(activation):
        return activation
    if activation not in ACTIVATIONS:
        known = ", ".join(map(repr, ACTIVATIONS))
        raise ValueError(f"activation={activation!r} is unknown; known are {known}, or a callable")
    return ACTIVATIONS[activation]
