"""Dense linear maps."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from modbrick.layers.parameters import Initialiser, constant, parameter
from modbrick.parallel import gathered


def matmul(x: Float[Array, "... I"], weight: Float[Array, "I O"]) -> Float[Array, "... O"]:
    """X W in the dtype of `x`, accumulated and returned in float32.

    Float32 inputs are multiplied with float32 accuracy on every backend.
    """
    precision = jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
    return jnp.matmul(
        x, weight.astype(x.dtype), precision=precision, preferred_element_type=jnp.float32
    )


class Projection(nnx.Module):
    """y = x W + b with W `[in, out]` and b `[out]` or absent, float32."""

    def __init__(
        self,
        shape: tuple[int, int],
        axes: tuple[str, str],
        *,
        initialiser: Initialiser,
        bias: bool = False,
        rngs: nnx.Rngs,
    ):
        self.weight = parameter(rngs, initialiser, shape, axes)
        if bias:
            self.bias = parameter(rngs, constant(0.0), shape[1:], axes[1:])

    def __call__(self, x: Float[Array, "... I"]) -> Float[Array, "... O"]:
        """Maps the last axis; in the dtype of `x`."""
        y = matmul(x, gathered(self.weight[...].astype(x.dtype), self.weight.axes))
        if hasattr(self, "bias"):
            y = y + self.bias[...]
        return y.astype(x.dtype)


class ExpertProjections(nnx.Module):
    """A bank of E linear maps, weight `[E, in, out]`; its owner applies it by a routing plan."""

    def __init__(
        self,
        count: int,
        shape: tuple[int, int],
        axes: tuple[str, str],
        *,
        initialiser: Initialiser,
        rngs: nnx.Rngs,
    ):
        self.weight = parameter(rngs, initialiser, (count, *shape), ("expert", *axes))
