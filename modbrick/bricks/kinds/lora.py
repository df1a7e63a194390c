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
from modbrick.layers import slots
from modbrick.layers.offer import Offer
from modbrick.layers.parameters import constant
from modbrick.layers.projections import accurate_matmul, matmul
from modbrick.parallel.choice import Choice


@dataclasses.dataclass(frozen=True)
class LoRA:
    """y + scale · (x down) up, at any linear map; a site of another width on each side, too.

    At the embedding x are the tokens themselves, so that `down` has a row for each of them. At a
    bank of experts there is one pair of `down` and `up` for the bank, or one for each expert: then
    a token's change is made by the pairs of its own experts.

    Several LoRAs of a token add up, in any order.

    Attributes:
      rank: of the update.
      alpha: the scale is alpha / rank; None: a scale of 1.
      scaling: by what alpha is divided; `root` is rank-stabilised LoRA, alpha / sqrt(rank)
        (arXiv 2312.03732).
      pairs: at a bank, one for the `bank` or one for each `expert`.
      dropout: share of the entries of x that are set to zero in training, in front of `down`, the
        others multiplied by 1 / (1 - dropout); not of ids of tokens.
    """

    rank: int = 8
    alpha: float | None = None
    scaling: Literal["rank", "root"] = "rank"
    pairs: Literal["bank", "expert"] = "bank"
    dropout: float = 0.0
    kind: Literal["lora"] = "lora"
    hook: ClassVar[Hook] = "outputs"

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise InputError(f"the rank of a LoRA must be at least 1, got {self.rank}")
        if not 0.0 <= self.dropout < 1.0:
            raise InputError(f"the dropout of a LoRA is at least 0 and below 1, got {self.dropout}")

    @property
    def scale(self) -> float:
        """By what the update is multiplied."""
        if self.alpha is None:
            return 1.0
        return self.alpha / (self.rank if self.scaling == "rank" else self.rank**0.5)

    @property
    def form(self) -> LowRank | ExpertLowRank:
        """What computes it."""
        return LowRank() if self.pairs == "bank" else ExpertLowRank()

    def leaves(self, site: Site) -> dict[str, LeafInfo]:
        """Returns `down`, uniform of variance 1 / in, and `up`, zeros: nothing changes at first.

        Raises:
          InputError: pairs for experts where there are none.
        """
        bank: tuple[int, ...] = ()
        axes: tuple[str, ...] = ()
        if self.pairs == "expert":
            if not site.experts:
                raise InputError(
                    f"{site.name} has no experts in this model: a LoRA with one pair for each goes "
                    "to the projections of a bank, elsewhere set pairs to bank"
                )
            bank, axes = (site.experts,), ("brick_expert",)
        inwards, outwards = (site.input_width, self.rank), (self.rank, site.output_width)
        return {
            "down": LeafInfo((*bank, *inwards), (*axes, "brick_input", "rank"), _uniform),
            "up": LeafInfo((*bank, *outwards), (*axes, "rank", "brick_output"), constant(0.0)),
        }

    def constants(self) -> dict[str, float]:
        """Returns the scale."""
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
        offer: Offer,
    ) -> Float[Array, "B S *K O"]:
        """Adds the updates of each token's bricks, computed in float32."""
        del offer
        down, up, scale = leaves["down"], leaves["up"], leaves["scale"]
        if choice is None:
            change = matmul(product(inputs, down[0]), up[0]) * scale[0]
        else:
            change = choice.reduce(choice.map(inputs, down), up, choice.factors(scale))
        return added(outputs, change)


@dataclasses.dataclass(frozen=True)
class ExpertLowRank:
    """Form of LoRA with a pair for each of E experts: `down` `[N, E, in, rank]`, `up`, `scale`.

    Each of a token's slots goes through the pairs of its expert by the grouped matmul: to it, the
    pairs of N bricks are N · E variants. They are whole on each device, as tokens are local, so
    that it makes no difference how the bank's own tokens are dispatched.
    """

    def __call__(
        self,
        leaves: Leaves,
        inputs: Float[Array, "B S I"],
        outputs: Float[Array, "B S *K O"],
        choice: Choice | None,
        offer: Offer,
    ) -> Float[Array, "B S *K O"]:
        """Adds the updates of each slot's expert, computed in float32.

        Where the outputs are the sum over a token's slots, its changes are summed by their gates.
        """
        assert offer.experts is not None, "attached at banks only"
        assert offer.gates is not None
        down, up = (leaves[name].reshape(-1, *leaves[name].shape[2:]) for name in ("down", "up"))
        if choice is None:
            choice = Choice(jnp.zeros((*offer.experts.shape[:2], 1), jnp.int32))
        of_tokens, of_slots = _pairs(choice, offer.experts, leaves["down"].shape[1])
        factors = choice.factors(leaves["scale"])
        batch, sequence, slots = offer.experts.shape
        if offer.slots is None:
            hidden = of_tokens.map(inputs.astype(jnp.float32), down)
            hidden = hidden.reshape(batch, sequence * slots, -1, hidden.shape[-1])
            factors = jnp.repeat(factors, slots, axis=1)
            change = of_slots.reduce(hidden, up, factors).reshape(outputs.shape)
        else:
            x = offer.slots.astype(jnp.float32).reshape(batch, sequence * slots, -1)
            hidden = of_slots.map(x, down)
            hidden = hidden.reshape(batch, sequence, -1, hidden.shape[-1])
            factors = offer.gates.astype(jnp.float32)[..., None] * factors[:, :, None]
            change = of_tokens.reduce(hidden, up, factors.reshape(batch, sequence, -1))
        return added(outputs, change)


def _pairs(choice: Choice, experts: Int[Array, "B S K"], count: int) -> tuple[Choice, Choice]:
    """Returns which pairs each token uses, slot by slot, and which each slot uses.

    Args:
      choice: bricks of each token, P places.
      experts: of its slots.
      count: E; pair `e` of brick `n` is variant n E + e.

    Returns:
      Choices `[B, S, K P]` of tokens and `[B, S K, P]` of slots.
    """
    batch, sequence, slots = experts.shape
    bricks = choice.ids[:, :, None]
    ids = jnp.where(bricks >= 0, bricks * count + experts[..., None].astype(jnp.int32), -1)
    return (
        Choice(ids.reshape(batch, sequence, -1)),
        Choice(ids.reshape(batch, sequence * slots, -1)),
    )


def product(
    inputs: Float[Array, "B S I"] | Int[Array, "B S"], matrix: Float[Array, "I O"]
) -> Array:
    """Returns the inputs times a matrix, in float32; ids of tokens choose its rows."""
    if jnp.issubdtype(inputs.dtype, jnp.integer):
        return matrix[inputs]
    return accurate_matmul(inputs, matrix)


def added(
    outputs: Float[Array, "B S *K O"], change: Float[Array, "B S O"]
) -> Float[Array, "B S *K O"]:
    """Returns the outputs with a change of each token added in float32, to every slot alike."""
    change = over_slots(change, outputs)
    return (outputs.astype(jnp.float32) + change).astype(outputs.dtype)


def over_slots(values: Float[Array, "B S O"], outputs: Array) -> Float[Array, "B S *K O"]:
    """Returns values of each token for each of its slots, if `outputs` has slots."""
    return values if outputs.ndim == values.ndim else slots.over_slots(values, outputs.shape[2])


def _uniform(key: jax.Array, shape: tuple[int, ...]) -> Float[Array, "*E I R"]:
    bound = (3.0 / shape[-2]) ** 0.5
    return jax.random.uniform(key, shape, jnp.float32, -bound, bound)
