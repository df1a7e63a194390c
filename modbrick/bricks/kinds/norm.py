"""Norm tuning: other scales, and biases, of the norms (arXiv 2312.11420)."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Literal

from jaxtyping import Array, Float

from modbrick.bricks.kinds.kind import LeafInfo, Leaves, Values
from modbrick.bricks.kinds.linear import LinearMap
from modbrick.bricks.kinds.lora import added, over_slots
from modbrick.decoder.sites import Hook, Site
from modbrick.layers.offer import Offer
from modbrick.layers.parameters import constant
from modbrick.parallel.choice import Choice


@dataclasses.dataclass(frozen=True)
class NormTuning:
    """y + x · scale + bias, with x the normalised values: the norm's own scale and bias, moved.

    Several of a token add up, in any order.

    Attributes:
      bias: whether there is a bias, too; the norm need not have one.
    """

    bias: bool = False
    kind: Literal["norm"] = "norm"
    hook: ClassVar[Hook] = "norm"

    @property
    def form(self) -> Rescaled:
        """What computes it."""
        return Rescaled(self.bias)

    def leaves(self, site: Site) -> dict[str, LeafInfo]:
        """Returns `scale` and `bias`, zeros: nothing changes at first."""
        info = LeafInfo((site.output_width,), ("brick_output",), constant(0.0))
        return {"scale": info, "bias": info} if self.bias else {"scale": info}

    def constants(self) -> dict[str, float]:
        """Returns nothing."""
        return {}

    def folded(self, leaves: Values, into: LinearMap) -> LinearMap:
        """Moves the norm's scale, which stands as a weight there, and its bias."""
        moved = into.plus(leaves["scale"])
        return moved.shifted(leaves["bias"]) if self.bias else moved


@dataclasses.dataclass(frozen=True)
class Rescaled:
    """Form of norm tuning: `scale` `[N, width]`, and `bias` alike."""

    bias: bool

    def __call__(
        self,
        leaves: Leaves,
        inputs: Float[Array, "B S *K D"],
        outputs: Float[Array, "B S *K D"],
        choice: Choice | None,
        offer: Offer,
    ) -> Float[Array, "B S *K D"]:
        """Adds what the bricks of each token move, in float32."""
        del offer

        def moved(leaf: str) -> Float[Array, "... D"]:
            if choice is None:
                return leaves[leaf][0]
            factors = choice.factors()[..., None]
            return over_slots((choice.take(leaves[leaf], 0.0) * factors).sum(-2), outputs)

        change = inputs * moved("scale")
        return added(outputs, change + moved("bias") if self.bias else change)
