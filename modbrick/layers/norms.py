"""Normalisation of the last axis, computed in float32."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from modbrick.config import NormConfig
from modbrick.layers.context import Context
from modbrick.layers.parameters import constant, parameter
from modbrick.layers.rematerialisation import mark_norm


class Norm(nnx.Module):
    """LayerNorm (arXiv 1607.06450) or RMSNorm (arXiv 1910.07467); scale and bias `[width]`."""

    def __init__(self, config: NormConfig, width: int, *, rngs: nnx.Rngs, axis: str = "width"):
        self.config = config
        self.scale = parameter(rngs, constant(1.0), (width,), (axis,))
        if config.bias:
            self.bias = parameter(rngs, constant(0.0), (width,), (axis,))

    def __call__(
        self, x: Float[Array, "... D"], context: Context | None = None, site: str = ""
    ) -> Float[Array, "... D"]:
        """Returns `x` normalised, in the dtype of `x`.

        Bricks at the norm's site see the normalised values before the scale and the norm's outputs,
        both float32.

        Args:
          x: what is normalised.
          context: of the layer or the decoder; None: no brick plugs in here.
          site: name of the norm in it.
        """
        values = x.astype(jnp.float32)
        if self.config.kind == "layer":
            values = values - mark_norm(values.mean(-1))[..., None]
        mean_square = mark_norm(jnp.square(values).mean(-1))[..., None]
        normalised = values * jax.lax.rsqrt(mean_square + self.config.epsilon)
        values = normalised * self.scale[...]
        if self.config.bias:
            values = values + self.bias[...]
        if context is not None:
            values = context.at(site, normalised, values, hook="norm")
        return values.astype(x.dtype)
