"""Bias tuning: a vector added at a site (BitFit, arXiv 2106.10199)."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Literal

from jaxtyping import Array, Float

from modbrick.bricks.kinds.kind import LeafInfo, Leaves, Values
from modbrick.bricks.kinds.linear import LinearMap
from modbrick.bricks.kinds.lora import added
from modbrick.decoder.sites import Hook, Site
from modbrick.layers.offer import Offer
from modbrick.layers.parameters import constant
from modbrick.parallel.choice import Choice


@dataclasses.dataclass(frozen=True)
class Bias:
    """y + strength · bias. Several of a token add up, in any order.

    At the residual stream this is steering: the vector of a direction, not trained but measured,
    and a strength (arXiv 2308.10248, section 3).

    Attributes:
      strength: by what the vector is multiplied.
    """

    strength: float = 1.0
    kind: Literal["bias"] = "bias"
    hook: ClassVar[Hook] = "outputs"

    @property
    def form(self) -> Shift:
        """What computes it."""
        return Shift()

    def leaves(self, site: Site) -> dict[str, LeafInfo]:
        """Returns `bias`, zeros: nothing changes at first."""
        return {"bias": LeafInfo((site.output_width,), ("brick_output",), constant(0.0))}

    def constants(self) -> dict[str, float]:
        """Returns the strength."""
        return {"scale": self.strength}

    def folded(self, leaves: Values, into: LinearMap) -> LinearMap:
        """Adds the vector to the bias."""
        return into.shifted(self.strength * leaves["bias"])


@dataclasses.dataclass(frozen=True)
class Shift:
    """Form of biases: `bias` `[N, out]`, `scale` `[N]`."""

    def __call__(
        self,
        leaves: Leaves,
        inputs: Float[Array, "B S I"],
        outputs: Float[Array, "B S *K O"],
        choice: Choice | None,
        offer: Offer,
    ) -> Float[Array, "B S *K O"]:
        """Adds the vectors of each token's bricks, in float32."""
        del inputs, offer
        if choice is None:
            bias = leaves["bias"][0] * leaves["scale"][0]
            return added(outputs, bias[None, None])
        factors = choice.factors(leaves["scale"])[..., None]
        return added(outputs, (choice.take(leaves["bias"], 0.0) * factors).sum(-2))
