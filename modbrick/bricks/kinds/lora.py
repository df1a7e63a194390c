"""LoRA: a low-rank update of a linear map (arXiv 2106.09685, section 4.1)."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from modbrick.bricks.kinds.kind import LeafInfo, Leaves, Values
from modbrick.bricks.kinds.linear import LinearMap
from modbrick.decoder.sites import Hook, Site
from modbrick.errors import InputError
from modbrick.layers.parameters import constant
from modbrick.layers.projections import matmul
from modbrick.parallel.choice import Choice


@dataclasses.dataclass(frozen=True)
class LoRA:
    """y + scale · (x down) up, at any linear map; a site of another width on each side, too.

    At the embedding x are the tokens themselves, so that `down` has a row for each of them.

    Several LoRAs of a token add up, in any order.

    Attributes:
      rank: of the update.
      alpha: the scale is alpha / rank; None: a scale of 1.
      scaling: by what alpha is divided; `root` is rank-stabilised LoRA, alpha / sqrt(rank)
        (arXiv 2312.03732).
    """

    rank: int = 8
    alpha: float | None = None
    scaling: Literal["rank", "root"] = "rank"
    kind: Literal["lora"] = "lora"
    hook: ClassVar[Hook] = "outputs"

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise InputError(f"the rank of a LoRA must be at least 1, got {self.rank}")

    @property
    def scale(self) -> float:
        """By what the update is multiplied."""
        if self.alpha is None:
            return 1.0
        return self.alpha / (self.rank if self.scaling == "rank" else self.rank**0.5)

    @property
    def form(self) -> LowRank:
        """What computes it."""
        return LowRank()

    def leaves(self, site: Site) -> dict[str, LeafInfo]:
        """Returns `down`, uniform of variance 1 / in, and `up`, zeros: nothing changes at first."""
        inwards, outwards = (site.input_width, self.rank), (self.rank, site.output_width)
        return {
            "down": LeafInfo(inwards, ("brick_input", "rank"), _uniform),
            "up": LeafInfo(outwards, ("rank", "brick_output"), constant(0.0)),
        }

    def constants(self, site: Site) -> dict[str, float]:
        """Returns the scale."""
        del site
        return {"scale": self.scale}

    def folded(self, leaves: Values, into: LinearMap) -> LinearMap:
        """Adds the update to the weight."""
        return into.plus(self.scale * (leaves["down"] @ leaves["up"]))


@dataclasses.dataclass(frozen=True)
class LowRank:
    """Form of LoRA: `down` `[N, in, rank]`, `up` `[N, rank, out]`, `scale` `[N]`."""

    def __call__(
        self,
        leaves: Leaves,
        inputs: Float[Array, "B S I"],
        outputs: Float[Array, "B S *K O"],
        choice: Choice | None,
    ) -> Float[Array, "B S *K O"]:
        """Adds the updates of each token's bricks, computed in float32."""
        down, up, scale = leaves["down"], leaves["up"], leaves["scale"]
        if choice is None:
            change = matmul(product(inputs, down[0]), up[0]) * scale[0]
        else:
            change = choice.reduce(choice.map(inputs, down), up, choice.factors(scale))
        return added(outputs, change)


def product(
    inputs: Float[Array, "B S I"] | Int[Array, "B S"], matrix: Float[Array, "I O"]
) -> Array:
    """Returns the inputs times a matrix, in float32; ids of tokens choose its rows."""
    if jnp.issubdtype(inputs.dtype, jnp.integer):
        return matrix[inputs]
    return matmul(inputs.astype(jnp.float32), matrix)


def added(
    outputs: Float[Array, "B S *K O"], change: Float[Array, "B S O"]
) -> Float[Array, "B S *K O"]:
    """Returns the outputs with a change of each token added in float32, to every slot alike."""
    change = over_slots(change, outputs)
    return (outputs.astype(jnp.float32) + change).astype(outputs.dtype)


def over_slots(values: Float[Array, "B S O"], outputs: Array) -> Float[Array, "B S *K O"]:
    """Returns values of each token with the axes of its slots, as many as `outputs` has."""
    slots = (1,) * (outputs.ndim - values.ndim)
    return values.reshape(*values.shape[:2], *slots, *values.shape[2:])


def _uniform(key: jax.Array, shape: tuple[int, ...]) -> Float[Array, "I R"]:
    bound = (3.0 / shape[0]) ** 0.5
    return jax.random.uniform(key, shape, jnp.float32, -bound, bound)
