"""Dense linear maps."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from modbrick.layers.offer import Offer
from modbrick.layers.parameters import Initialiser, constant, parameter
from modbrick.parallel import gathered
from modbrick.parameters import Role


def matmul(x: Float[Array, "... I"], weight: Float[Array, "I O"]) -> Float[Array, "... O"]:
    """X W in the dtype of `x`, accumulated and returned in float32.

    Float32 inputs are multiplied with float32 accuracy on every backend.
    """
    precision = jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
    return jnp.matmul(
        x, weight.astype(x.dtype), precision=precision, preferred_element_type=jnp.float32
    )


@jax.custom_vjp
def accurate_matmul(x: Float[Array, "... I"], weight: Float[Array, "I O"]) -> Float[Array, "... O"]:
    """X W with the accuracy of float32 whatever the dtype of `x`; `weight` and the result float32.

    So are the gradients, but for bfloat16 inputs, where they are products at `Precision.HIGH`:
    three bfloat16 passes on a TPU, good to about 2^-16, TF32 on a GPU. The gradient of `x` is
    rounded to 2^-9 in any case, and those of other weights are of cotangents so rounded.
    """
    return _float32_matmul(x, weight, jax.lax.Precision.HIGHEST)


def _float32_matmul(x: Array, weight: Array, precision: jax.lax.Precision) -> Array:
    # As a conversion next to the product, which a TPU then does in half the passes.
    return jnp.matmul(
        x.astype(jnp.float32), weight, precision=precision, preferred_element_type=jnp.float32
    )


def _accurate_matmul_forward(x: Array, weight: Array) -> tuple[Array, tuple[Array, Array]]:
    return _float32_matmul(x, weight, jax.lax.Precision.HIGHEST), (x, weight)


def _accurate_matmul_backward(saved: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    x, weight = saved
    rounded = x.dtype == jnp.bfloat16
    precision = jax.lax.Precision.HIGH if rounded else jax.lax.Precision.HIGHEST
    dx = _float32_matmul(dy, weight.T, precision).astype(x.dtype)
    tokens = tuple(range(x.ndim - 1))
    dweight = jax.lax.dot_general(
        x.astype(jnp.float32),
        dy,
        ((tokens, tokens), ((), ())),
        precision=precision,
        preferred_element_type=jnp.float32,
    )
    return dx, dweight.astype(weight.dtype)


accurate_matmul.defvjp(_accurate_matmul_forward, _accurate_matmul_backward)


class Projection(nnx.Module):
    """y = x W + b with W `[in, out]` and b `[out]` or absent, float32."""

    def __init__(
        self,
        shape: tuple[int, int],
        axes: tuple[str, str],
        *,
        initialiser: Initialiser,
        bias: bool = False,
        role: Role | None = None,
        rngs: nnx.Rngs,
    ):
        self.weight = parameter(rngs, initialiser, shape, axes, role=role)
        if bias:
            self.bias = parameter(rngs, constant(0.0), shape[1:], axes[1:], role=role)

    def __call__(self, x: Float[Array, "... I"]) -> Float[Array, "... O"]:
        """Maps the last axis; in the dtype of `x`."""
        weight = gathered(self.weight[...].astype(x.dtype), self.weight.axes)
        return self._biased(matmul(x, weight)).astype(x.dtype)

    def in_float32(self, x: Float[Array, "... I"]) -> Float[Array, "... O"]:
        """Maps the last axis with float32 accuracy, to float32, whatever the dtype of `x`."""
        return self._biased(accurate_matmul(x, gathered(self.weight[...], self.weight.axes)))

    @property
    def offer(self) -> Offer:
        """What a site of this map offers to bricks."""
        return Offer(self.weight[...], self.bias[...] if hasattr(self, "bias") else None)

    def _biased(self, y: Float[Array, "... O"]) -> Float[Array, "... O"]:
        return y + self.bias[...] if hasattr(self, "bias") else y


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

    def offer(
        self,
        experts: Int[Array, "B S K"],
        gates: Float[Array, "B S K"],
        slots: Float[Array, "B S K I"] | None = None,
    ) -> Offer:
        """Returns what a site of this bank offers to bricks, see `Offer`."""
        return Offer(self.weight[...], None, experts, gates, slots)
