"""Choice of variants: which of N bricks each token uses, and products with their matrices.

A token has K places, each filled by one of N variants or by none (-1), with a weight. Products go
through the grouped matmul, which multiplies a token by the matrices of its own variants only; on a
mesh each device does so with its tokens, and the matrices are whole on each.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from modbrick.parallel.mesh import current_mesh
from modbrick.parallel.rules import activation_spec
from pallas_kernels.grouped_matmul import grouped_matmul, routing_plan


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Choice:
    """Variants that each token uses.

    Attributes:
      ids: of the variants; -1: none in this place.
      weights: by which the change of each is multiplied; None: 1.
      alike: whether they are known to be the same for all tokens.
    """

    ids: Int[Array, "B S K"]
    weights: Float[Array, "B S K"] | None = None
    alike: bool = dataclasses.field(default=False, metadata={"static": True})

    @property
    def used(self) -> Bool[Array, "B S"]:
        """Tokens that use any variant."""
        return (self.ids >= 0).any(-1)

    def of(self, rows: Int[Array, "M"]) -> Choice:
        """Returns the choice among rows of a table: variant m is in row `rows[m]`, -1: in none."""
        known = (self.ids >= 0) & (self.ids < len(rows))
        return Choice(jnp.where(known, rows[jnp.where(known, self.ids, 0)], -1), self.weights)

    def first(self) -> Choice:
        """Returns the choice of the first token alone."""
        weights = self.weights
        return Choice(self.ids[:1, :1], None if weights is None else weights[:1, :1])

    def places(self) -> list[Choice]:
        """Returns a choice of at most one variant a token for each place, in order."""
        weights = self.weights
        return [
            Choice(self.ids[..., k : k + 1], None if weights is None else weights[..., k : k + 1])
            for k in range(self.ids.shape[-1])
        ]

    def factors(self, scales: Float[Array, "N"] | None = None) -> Float[Array, "B S K"]:
        """Returns the weight of each place times its variant's scale; 0 where there is none."""
        weights = jnp.ones(self.ids.shape, jnp.float32) if self.weights is None else self.weights
        if scales is not None:
            weights = weights * scales[jnp.maximum(self.ids, 0)]
        return jnp.where(self.ids >= 0, weights.astype(jnp.float32), 0.0)

    def take(self, values: Float[Array, "N O"], otherwise: float) -> Float[Array, "B S K O"]:
        """Returns each place's row of `values`; `otherwise` where there is none."""
        rows = values[jnp.maximum(self.ids, 0)]
        return jnp.where((self.ids >= 0)[..., None], rows, otherwise)

    def map(
        self, x: Float[Array, "B S I"] | Int[Array, "B S"], matrices: Float[Array, "N I O"]
    ) -> Float[Array, "B S K O"]:
        """Multiplies each token by the matrix of each of its variants, in float32.

        Where `x` are integers, they choose rows of the matrices.
        """

        def run(x: Array, ids: Array, matrices: Array) -> Array:
            k = ids.shape[-1]
            if jnp.issubdtype(x.dtype, jnp.integer):
                return matrices[jnp.maximum(ids, 0), x[..., None]]
            x = x.astype(jnp.float32)
            plan = routing_plan(ids.reshape(-1, k), len(matrices))
            rows = x.reshape(-1, x.shape[-1])
            y = grouped_matmul(rows, matrices, plan, output_layout="slots")
            return y.reshape(*x.shape[:2], k, -1)

        return _over_tokens(run, 2)(x, self.ids, matrices)

    def reduce(
        self, x: Float[Array, "B S K I"], matrices: Float[Array, "N I O"], factors: Array
    ) -> Float[Array, "B S O"]:
        """Sums over places the product with the variant's matrix, weighted by `factors`."""

        def run(x: Array, ids: Array, factors: Array, matrices: Array) -> Array:
            k = ids.shape[-1]
            plan = routing_plan(ids.reshape(-1, k), len(matrices))
            y = grouped_matmul(
                x.reshape(-1, *x.shape[2:]),
                matrices,
                plan,
                input_layout="slots",
                output_layout="tokens",
                gates=factors.reshape(-1, k),
            )
            return y.reshape(*x.shape[:2], -1)

        return _over_tokens(run, 3)(x, self.ids, factors, matrices)


def _over_tokens(run: Callable[..., Array], tokens: int) -> Callable[..., Array]:
    """Runs a function on each device's tokens; arguments behind the first `tokens` are whole."""
    mesh = current_mesh()
    if mesh is None:
        return run
    divided, whole = activation_spec("batch", "sequence"), PartitionSpec()

    def on_mesh(*arguments: Any) -> Array:
        specs = tuple(divided if i < tokens else whole for i in range(len(arguments)))
        return jax.shard_map(run, mesh=mesh, in_specs=specs, out_specs=divided, check_vma=False)(
            *arguments
        )

    return on_mesh
