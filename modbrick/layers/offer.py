"""What a site offers to bricks beside its inputs and outputs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import jax
from jaxtyping import Array, Float, Int, Key


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Offer:
    """References to what a layer has at hand at a site; None: it has no such thing there.

    Nothing is computed for it: a layer passes on what it used itself.

    Attributes:
      weight: of the linear map from inputs to outputs, as it is held: `[in, out]`, of a bank
        `[E, in, out]`.
      bias: that the map adds, `[out]`.
      experts: of each of a token's slots, in front of a bank.
      gates: weights of the slots.
      slots: inputs of each slot, where the outputs are the sum over them; elsewhere every slot has
        the site's inputs, and outputs of its own.
      outputs: of the map, before any brick.
      features: that a call brings beside its tokens, `[B, P, W]`, by name.
      random_keys: one for each row or token, of what is drawn in training.
      site: its name.
    """

    weight: Float[Array, "*E I O"] | None = None
    bias: Float[Array, "O"] | None = None
    experts: Int[Array, "B S K"] | None = None
    gates: Float[Array, "B S K"] | None = None
    slots: Float[Array, "B S K I"] | None = None
    outputs: Float[Array, "B S *K O"] | None = None
    features: Mapping[str, Float[Array, "B P W"]] = dataclasses.field(default_factory=dict)
    random_keys: Key[Array, "B *S"] | None = None
    site: str = dataclasses.field(default="", metadata={"static": True})


NOTHING = Offer()
"""Of a site that has inputs and outputs only."""
