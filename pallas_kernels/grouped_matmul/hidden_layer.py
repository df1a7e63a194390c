"""The hidden layer of feed-forward experts, gated or not."""

from __future__ import annotations

from collections.abc import Callable

from jax import Array

Activation = Callable[[Array], Array]

PRE_ACTIVATION_NAME = "expert_pre_activation"
"""The name of the pre-activations that the backward pass keeps, for rematerialisation policies."""


def hidden_layer(pre: tuple[Array, ...], activation: Activation) -> Array:
    """The hidden layer from the pre-activations (up,) or (up, gate)."""
    return activation(pre[0]) if len(pre) == 1 else activation(pre[1]) * pre[0]
