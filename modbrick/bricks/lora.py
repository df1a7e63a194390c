"""LoRA: a low-rank update of a linear map (arXiv 2106.09685, section 4.1)."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from modbrick.layers.projections import matmul


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LoRA:
    """y + scale · (x down) up, one of N variants for each token.

    Attributes:
      down: `[N, in, rank]`.
      up: `[N, rank, out]`; zeros at first, so that a new brick changes nothing.
      scale: alpha / rank.
    """

    down: Float[Array, "N I R"]
    up: Float[Array, "N R O"]
    scale: Float[Array, ""]

    @classmethod
    def initial(
        cls,
        key: jax.Array,
        input_width: int,
        output_width: int,
        *,
        rank: int,
        alpha: float | None = None,
        variants: int = 1,
    ) -> LoRA:
        """Returns a brick that changes nothing yet; `alpha` defaults to the rank (a scale of 1)."""
        bound = (3.0 / input_width) ** 0.5
        shape = (variants, input_width, rank)
        down = jax.random.uniform(key, shape, jnp.float32, -bound, bound)
        up = jnp.zeros((variants, rank, output_width), jnp.float32)
        return cls(down, up, jnp.float32((rank if alpha is None else alpha) / rank))

    def __call__(
        self,
        inputs: Float[Array, "B S I"],
        outputs: Float[Array, "B S *K O"],
        brick_ids: Int[Array, "B S"] | None,
    ) -> Float[Array, "B S *K O"]:
        """Returns the outputs with the update of each token's variant added."""
        x = inputs.astype(jnp.float32)
        if brick_ids is None:
            change = matmul(matmul(x, self.down[0]), self.up[0])
        else:
            chosen = jax.nn.one_hot(brick_ids, self.down.shape[0], dtype=jnp.float32)
            exact = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
            reduced = exact("bsi,nir->bsnr", x, self.down) * chosen[..., None]
            change = exact("bsnr,nro->bso", reduced, self.up)
        slots = (1,) * (outputs.ndim - change.ndim)
        change = (self.scale * change).reshape(*change.shape[:2], *slots, change.shape[-1])
        return (outputs.astype(jnp.float32) + change).astype(outputs.dtype)
