"""Emergent brick: a part of a model's own weights, taken out of one and put into another."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from modbrick.bricks.kinds.kind import LeafInfo, Leaves, Values
from modbrick.bricks.kinds.linear import LinearMap
from modbrick.decoder.sites import Hook, Site
from modbrick.errors import InputError
from modbrick.layers.offer import Offer
from modbrick.parallel.choice import Choice

_AXES = ("brick_entry", "brick_input", "brick_output")


@dataclasses.dataclass(frozen=True)
class Emergent:
    """A weight, or that of one expert, in place of the model's own.

    Where several have the same place, the last one counts, and an expert's own before that of a
    whole bank. It replaces the weight for all tokens alike: ids that differ between them are
    refused. With a weight w it is mixed into the model's own, W + w (new - W). Beside the model it
    takes room for every layer of its segment: fold it in where that is too much.

    Attributes:
      expert: whose weight it is; None: of the whole parameter.
    """

    expert: int | None = None
    kind: Literal["emergent"] = "emergent"
    hook: ClassVar[Hook] = "weights"

    @property
    def form(self) -> Replacement:
        """What computes it."""
        return Replacement(-1 if self.expert is None else self.expert)

    def leaves(self, site: Site) -> dict[str, LeafInfo]:
        """Returns `weight`; there is none at first, as it comes out of a model.

        Raises:
          InputError: the model has no such expert.
        """
        shape = site.shape
        if self.expert is not None:
            experts = shape[0] if len(shape) > 2 else 0
            if not 0 <= self.expert < experts:
                raise InputError(f"{site.name} has {experts} experts, none of number {self.expert}")
            shape = shape[1:]
        return {"weight": LeafInfo(shape, _AXES[-len(shape) :], _refuse)}

    def constants(self) -> dict[str, float]:
        """Returns nothing."""
        return {}

    def folded(self, leaves: Values, into: LinearMap) -> LinearMap:
        """Puts it in place of the weight."""
        weight = into.weight.copy()
        weight[... if self.expert is None else self.expert] = leaves["weight"]
        return dataclasses.replace(into, weight=weight)


@dataclasses.dataclass(frozen=True)
class Replacement:
    """Form of emergent bricks: `weight` `[N, ...]`.

    Attributes:
      expert: -1: the weight is a whole one; such forms come first where there are several.
    """

    expert: int

    def __call__(
        self,
        leaves: Leaves,
        inputs: Float[Array, "1 1 ..."],
        outputs: Float[Array, "1 1 ..."],
        choice: Choice | None,
        offer: Offer,
    ) -> Float[Array, "1 1 ..."]:
        """Returns the weight with the last brick in its place."""
        del inputs, offer
        if choice is None:
            return self._with(outputs, leaves["weight"][0].astype(outputs.dtype))
        for place in choice.places():
            number, weight = place.ids[0, 0, 0], place.factors()[0, 0, 0]
            old = outputs[0, 0] if self.expert < 0 else outputs[0, 0, self.expert]
            new = leaves["weight"][jnp.maximum(number, 0)].astype(outputs.dtype)
            new = new if place.weights is None else old + weight * (new - old)
            outputs = self._with(outputs, jnp.where(number >= 0, new, old))
        return outputs

    def _with(self, outputs: Array, weight: Array) -> Array:
        at = outputs.at[0, 0] if self.expert < 0 else outputs.at[0, 0, self.expert]
        return at.set(weight)


def _refuse(key: jax.Array, shape: tuple[int, ...]) -> Array:
    raise InputError("an emergent brick is taken out of a model (bricks.py extract): none is new")
