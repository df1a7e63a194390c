"""Bank: bricks of one form at one site, stacked, with the row of each in the stack."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from modbrick.bricks.dropout import dropped
from modbrick.bricks.kinds.kind import Form, Leaves
from modbrick.layers.offer import Offer
from modbrick.parallel.choice import Choice


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Bank:
    """N bricks of one form at a site; a `SiteBrick`.

    In a segment every array has a leading axis over its layers.

    Attributes:
      leaves: arrays of the bricks, `[N, ...]`, padded to one shape; constants `[N]`.
      rows: of each of the M bricks plugged into the model, its row among the N, -1: not here.
      form: what computes them.
      rates: which share of what it reads each of the M bricks drops in training; empty: nothing.
    """

    leaves: Leaves
    rows: Int[Array, "M"]
    form: Form = dataclasses.field(metadata={"static": True})
    rates: tuple[float, ...] = dataclasses.field(default=(), metadata={"static": True})

    def __call__(
        self,
        inputs: Float[Array, "B S I"],
        outputs: Float[Array, "B S *K O"],
        choice: Choice | None,
        offer: Offer,
    ) -> Float[Array, "B S *K O"]:
        """Returns the outputs changed by each token's bricks; without a choice, by all in order."""
        drops = bool(self.rates) and offer.random_keys is not None
        if choice is not None and not drops:
            return self._chosen(inputs, outputs, choice, offer)
        if choice is not None:
            for place in choice.places():
                read = dropped(inputs, offer, place.ids[..., 0], self.rates)
                outputs = self._chosen(read[0], outputs, place, read[1])
            return outputs
        # They are stacked in the order of their ids.
        for row in range(len(next(iter(self.leaves.values())))):
            here = self.rows == row
            leaves = {name: leaf[row : row + 1] for name, leaf in self.leaves.items()}
            read = (inputs, offer)
            if drops:
                ids = jnp.full(inputs.shape[:2], jnp.argmax(here), jnp.int32)
                read = dropped(inputs, offer, ids, self.rates)
            changed = self.form(leaves, read[0], outputs, None, read[1])
            outputs = jnp.where(here.any(), changed, outputs)
        return outputs

    def _chosen(self, inputs: Array, outputs: Array, choice: Choice, offer: Offer) -> Array:
        """Returns the outputs changed by each token's bricks."""
        choice = choice.of(self.rows)
        changed = self.form(self.leaves, inputs, outputs, choice, offer)
        # A token without a brick keeps its bits, whatever stands in its neighbours.
        used = choice.used.reshape(*choice.used.shape, *(1,) * (outputs.ndim - 2))
        return jnp.where(used, changed, outputs)
