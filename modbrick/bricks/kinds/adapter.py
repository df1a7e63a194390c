"""Bottleneck adapter: two small layers behind, or beside, a sublayer.

Serial as in arXiv 1902.00751 (section 2.1) and 2005.00247; parallel as in arXiv 2110.04366
(section 3.2).
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Literal

from jaxtyping import Array, Float

from modbrick.bricks.kinds.kind import LeafInfo, Leaves, Values
from modbrick.bricks.kinds.linear import LinearMap
from modbrick.bricks.kinds.lora import added, product
from modbrick.config import Activation
from modbrick.decoder.sites import Hook, Site
from modbrick.errors import InputError
from modbrick.layers.activations import ACTIVATIONS
from modbrick.layers.offer import Offer
from modbrick.layers.parameters import constant, normal
from modbrick.layers.projections import matmul
from modbrick.parallel.choice import Choice


@dataclasses.dataclass(frozen=True)
class Adapter:
    """y + scale · (activation(x down + down_bias) up + up_bias), with x = y if serial.

    Serial adapters of a token apply one after another, in the order in which they are named;
    parallel ones add up.

    Attributes:
      hidden: width of the bottleneck.
      activation: between the two maps.
      placement: `serial` reads the site's outputs, `parallel` its inputs.
      scale: by what the change is multiplied.
    """

    hidden: int = 64
    activation: Activation = "relu"
    placement: Literal["serial", "parallel"] = "serial"
    scale: float = 1.0
    kind: Literal["adapter"] = "adapter"
    hook: ClassVar[Hook] = "outputs"

    def __post_init__(self) -> None:
        if self.hidden < 1:
            raise InputError(f"an adapter's hidden width must be at least 1, got {self.hidden}")

    @property
    def form(self) -> Bottleneck:
        """What computes it."""
        return Bottleneck(self.activation, self.placement)

    def leaves(self, site: Site) -> dict[str, LeafInfo]:
        """Returns both maps with their biases; `up` is zero, so that nothing changes at first.

        Raises:
          InputError: a serial one where a token has an output for each of its experts.
        """
        serial = self.placement == "serial"
        if serial and site.slots > 1:
            raise InputError(
                f"a serial adapter reads a site's one output, {site.name} has {site.slots} a token "
                "here: attach it at attention, or use placement parallel"
            )
        width = site.output_width if serial else site.input_width
        zero = constant(0.0)
        return {
            "down": LeafInfo((width, self.hidden), ("brick_input", "rank"), normal(0.02)),
            "down_bias": LeafInfo((self.hidden,), ("rank",), zero),
            "up": LeafInfo((self.hidden, site.output_width), ("rank", "brick_output"), zero),
            "up_bias": LeafInfo((site.output_width,), ("brick_output",), zero),
        }

    def constants(self) -> dict[str, float]:
        """Returns the scale."""
        return {"scale": self.scale}

    def folded(self, leaves: Values, into: LinearMap) -> LinearMap:
        """Refuses, as an adapter is no linear map."""
        raise InputError(f"an adapter is no linear map as {into.name} is")


@dataclasses.dataclass(frozen=True)
class Bottleneck:
    """Form of adapters: `down` `[N, in, hidden]`, `up` `[N, hidden, out]`, biases, `scale`."""

    activation: Activation
    placement: Literal["serial", "parallel"]

    def __call__(
        self,
        leaves: Leaves,
        inputs: Float[Array, "B S I"],
        outputs: Float[Array, "B S *K O"],
        choice: Choice | None,
        offer: Offer,
    ) -> Float[Array, "B S *K O"]:
        """Adds what the adapters of each token return, computed in float32."""
        del offer
        serial = self.placement == "serial"
        if choice is None:
            return added(outputs, self._of_first(leaves, outputs if serial else inputs))
        if not serial:
            return added(outputs, self._chosen(leaves, inputs, choice))
        for place in choice.places():
            outputs = added(outputs, self._chosen(leaves, outputs, place))
        return outputs

    def _of_first(self, leaves: Leaves, x: Float[Array, "B S I"]) -> Float[Array, "B S O"]:
        activation = ACTIVATIONS[self.activation]
        first = {name: leaf[0] for name, leaf in leaves.items()}
        hidden = activation(product(x, first["down"]) + first["down_bias"])
        return (matmul(hidden, first["up"]) + first["up_bias"]) * first["scale"]

    def _chosen(
        self, leaves: Leaves, x: Float[Array, "B S I"], choice: Choice
    ) -> Float[Array, "B S O"]:
        hidden = choice.map(x, leaves["down"])
        hidden = ACTIVATIONS[self.activation](hidden + choice.take(leaves["down_bias"], 0.0))
        factors = choice.factors(leaves["scale"])
        change = choice.reduce(hidden, leaves["up"], factors)
        return change + (choice.take(leaves["up_bias"], 0.0) * factors[..., None]).sum(-2)
