"""DoRA: a low-rank update of a weight's directions, with magnitudes of their own."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from modbrick.bricks.kinds.kind import LeafInfo, Leaves, Values
from modbrick.bricks.kinds.linear import LinearMap
from modbrick.bricks.kinds.lora import LoRA, added
from modbrick.decoder.sites import Hook, Site
from modbrick.errors import InputError
from modbrick.layers.offer import Offer
from modbrick.layers.parameters import constant
from modbrick.layers.projections import matmul
from modbrick.parallel.choice import Choice


@dataclasses.dataclass(frozen=True)
class DoRA:
    """x W' instead of x W: W'_j = magnitude_j ‖W_j‖ V_j / ‖V_j‖ with V = W + scale · down up.

    Column j makes output unit j. The divisor is held constant in the gradient (arXiv 2402.09353,
    section 4.3). A magnitude is relative to that of the base: a new brick has ones and fits any
    base, and what the paper calls m is magnitude_j ‖W_j‖.

    Several DoRAs of a token add up, in any order, as LoRAs beside them do: what each changes in W
    is applied to the site's inputs, whatever the others did to its outputs.

    Attributes:
      rank, alpha, scaling, dropout: as of a LoRA; nothing is dropped from x W.
    """

    rank: int = 8
    alpha: float | None = None
    scaling: Literal["rank", "root"] = "rank"
    dropout: float = 0.0
    kind: Literal["dora"] = "dora"
    hook: ClassVar[Hook] = "outputs"

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise InputError(f"the rank of a DoRA must be at least 1, got {self.rank}")
        if not 0.0 <= self.dropout < 1.0:
            raise InputError(f"the dropout of a DoRA is at least 0 and below 1, got {self.dropout}")

    @property
    def scale(self) -> float:
        """By what the update is multiplied."""
        return self._low_rank.scale

    @property
    def form(self) -> Decomposed:
        """What computes it."""
        return Decomposed()

    def leaves(self, site: Site) -> dict[str, LeafInfo]:
        """Returns `down` and `up` of a LoRA and `magnitude`, ones: nothing changes at first.

        Raises:
          InputError: there is no linear map, or a bank of them.
        """
        if not site.linear:
            raise InputError(
                f"a DoRA changes the weight of a linear map, {site.name} has none: attach it at a "
                "projection"
            )
        if site.experts:
            raise InputError(
                f"a DoRA would need the norms of {site.experts} weights at {site.name}, one for "
                "each expert: attach a LoRA there"
            )
        magnitude = LeafInfo((site.output_width,), ("brick_output",), constant(1.0), padding=1.0)
        return {**self._low_rank.leaves(site), "magnitude": magnitude}

    def constants(self) -> dict[str, float]:
        """Returns the scale."""
        return self._low_rank.constants()

    def folded(self, leaves: Values, into: LinearMap) -> LinearMap:
        """Adds what changes in the map's original weight."""
        base = into.weight if into.original is None else into.original
        directions = base + self.scale * (leaves["down"] @ leaves["up"])
        before, after = (np.linalg.norm(matrix, axis=0) for matrix in (base, directions))
        same = before == after  # of a column of zeros, too
        factors = leaves["magnitude"] * np.where(same, 1.0, before / np.where(same, 1.0, after))
        return into.plus(factors * directions - base)

    @property
    def _low_rank(self) -> LoRA:
        return LoRA(self.rank, self.alpha, self.scaling)


@dataclasses.dataclass(frozen=True)
class Decomposed:
    """Form of DoRA: as of LoRA, and `magnitude` `[N, out]`.

    With f = magnitude ‖W‖ / ‖V‖ for each output unit, x W' is f (x W + scale · (x down) up), so
    that no brick makes a weight of its own; nor does its norm, see `_relative_norms`.
    """

    def __call__(
        self,
        leaves: Leaves,
        inputs: Float[Array, "B S I"],
        outputs: Float[Array, "B S *K O"],
        choice: Choice | None,
        offer: Offer,
    ) -> Float[Array, "B S *K O"]:
        """Adds x (W' - W) of each token's bricks, computed in float32."""
        assert offer.weight is not None, "attached at linear maps only"
        assert offer.outputs is not None
        x, base = inputs.astype(jnp.float32), offer.outputs.astype(jnp.float32)
        if offer.bias is not None:
            base = base - offer.bias
        down, up, scale = leaves["down"], leaves["up"], leaves["scale"]
        factors = leaves["magnitude"] / _relative_norms(offer.weight, down, up, scale)
        up = up * factors[:, None]
        if choice is None:
            more = factors[0] - 1.0
            change = matmul(matmul(x, down[0]), up[0]) * scale[0]
        else:
            weights = choice.factors()[..., None]
            more = ((choice.take(factors, 1.0) - 1.0) * weights).sum(-2)
            change = choice.reduce(choice.map(x, down), up, choice.factors(scale))
        return added(outputs, more * base + change)


def _relative_norms(
    weight: Float[Array, "I O"],
    down: Float[Array, "N I R"],
    up: Float[Array, "N R O"],
    scale: Float[Array, "N"],
) -> Float[Array, "N O"]:
    """Returns ‖W_j + scale · (down up)_j‖ / ‖W_j‖ of each output unit, without a gradient.

    The square of the numerator is ‖W_j‖² + 2 scale · up_jᵀ downᵀ W_j + scale² up_jᵀ downᵀ down
    up_j: products with the rank. Where the update is zero the result is exactly 1. It does not fall
    below 1e-3, where the rounding of the squares would be most of it.
    """
    weight, down, up = jax.lax.stop_gradient((weight.astype(jnp.float32), down, up))
    transposed = down.swapaxes(1, 2)
    along = matmul(transposed, weight)
    own = matmul(matmul(transposed, down), up)
    change = scale[:, None] * (up * (2.0 * along + scale[:, None, None] * own)).sum(1)
    square = jnp.square(weight).sum(0)
    ratio = jnp.sqrt(jnp.maximum(1.0 + change / square, 1e-6))
    return jnp.where(change == 0.0, 1.0, ratio)
