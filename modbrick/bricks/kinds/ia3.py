"""IA³: a factor for each unit of keys, values or hidden layer (arXiv 2205.05638, section 3.3)."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Literal

import jax.numpy as jnp
from jaxtyping import Array, Float

from modbrick.bricks.kinds.kind import LeafInfo, Leaves, Values
from modbrick.bricks.kinds.linear import LinearMap
from modbrick.bricks.kinds.lora import over_slots
from modbrick.decoder.sites import Hook, Site
from modbrick.layers.offer import Offer
from modbrick.layers.parameters import constant
from modbrick.parallel.choice import Choice


@dataclasses.dataclass(frozen=True)
class IA3:
    """y · factor. Several of a token multiply, in any order.

    A weight w stands for a factor of 1 + w (factor - 1).
    """

    kind: Literal["ia3"] = "ia3"
    hook: ClassVar[Hook] = "outputs"

    @property
    def form(self) -> Rescaling:
        """What computes it."""
        return Rescaling()

    def leaves(self, site: Site) -> dict[str, LeafInfo]:
        """Returns `factor`, ones: nothing changes at first."""
        one = constant(1.0)
        return {"factor": LeafInfo((site.output_width,), ("brick_output",), one, padding=1.0)}

    def constants(self) -> dict[str, float]:
        """Returns nothing."""
        return {}

    def folded(self, leaves: Values, into: LinearMap) -> LinearMap:
        """Multiplies the outputs."""
        return into.scaled(leaves["factor"])


@dataclasses.dataclass(frozen=True)
class Rescaling:
    """Form of IA³: `factor` `[N, out]`."""

    def __call__(
        self,
        leaves: Leaves,
        inputs: Float[Array, "B S I"],
        outputs: Float[Array, "B S *K O"],
        choice: Choice | None,
        offer: Offer,
    ) -> Float[Array, "B S *K O"]:
        """Multiplies each token by the factors of its bricks, in float32."""
        del inputs, offer
        if choice is None:
            factor = leaves["factor"][0]
        else:
            chosen = choice.take(leaves["factor"], 1.0)
            if choice.weights is not None:
                chosen = 1.0 + choice.weights[..., None] * (chosen - 1.0)
            factor = over_slots(chosen.prod(-2), outputs)
        return (outputs.astype(jnp.float32) * factor).astype(outputs.dtype)
