"""Declaration of a layer's parameters: initial value, and the logical name of each axis."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from modbrick.parameters import Role

Initialiser = Callable[[jax.Array, tuple[int, ...]], Float[Array, "..."]]


def normal(scale: float) -> Initialiser:
    """Normal values of standard deviation `scale`."""
    return lambda key, shape: scale * jax.random.normal(key, shape, jnp.float32)


def uniform_fan_in(key: jax.Array, shape: tuple[int, ...]) -> Float[Array, "..."]:
    """Uniform values in ±1/in for weights `[..., in, out]`, as in the original ModuleFormer."""
    bound = 1.0 / shape[-2]
    return jax.random.uniform(key, shape, jnp.float32, -bound, bound)


def constant(value: float) -> Initialiser:
    """The same value everywhere."""
    return lambda key, shape: jnp.full(shape, value, jnp.float32)


def parameter(
    rngs: nnx.Rngs,
    initialiser: Initialiser,
    shape: tuple[int, ...],
    axes: tuple[str, ...],
    *,
    role: Role | None = None,
) -> nnx.Param:
    """Declares a float32 parameter.

    Args:
      rngs: source of keys; one is drawn for every parameter.
      initialiser: maps (key, shape) to the initial value.
      shape: of one layer's parameter; stacking layers adds a leading axis `layer`.
      axes: a logical name for each axis, which sharding rules and addresses refer to.
      role: what it serves, see `ParameterInfo`.
    """
    if len(shape) != len(axes):
        raise ValueError(f"axes {axes} do not name every dimension of shape {shape}")
    return nnx.Param(initialiser(rngs.params(), shape), axes=axes, role=role)
