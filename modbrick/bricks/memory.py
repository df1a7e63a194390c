"""Banks of what stands in front of every document: keys and values, and prompts."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from modbrick.bricks.kinds.kind import Leaves, MemoryForm
from modbrick.decoder.prompts import Encode
from modbrick.layers.memory import Attended
from modbrick.parallel.choice import Choice


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class MemoryBank:
    """N bricks with keys and values at a site; a `MemoryBrick`. Attributes are those of `Bank`."""

    leaves: Leaves
    rows: Int[Array, "M"]
    form: MemoryForm = dataclasses.field(metadata={"static": True})

    def __call__(self, attended: Attended, choice: Choice | None) -> Attended:
        """Returns what tokens have after their bricks; without a choice, after all in order."""
        if choice is None:
            # They are stacked in the order of their ids; of length 0 is what is not here.
            length = self.leaves["length"]
            here = (self.rows[:, None] == jnp.arange(len(length))).any(0)
            leaves = {**self.leaves, "length": jnp.where(here, length, 0.0)}
            return self.form(leaves, attended, None)
        choice = choice.of(self.rows)
        changed = self.form(self.leaves, attended, choice)
        assert changed.left is not None, "what a form gives has it"
        assert attended.left is not None, "attention was asked what it left"
        # A token without a brick keeps its bits, whatever stands in its neighbours.
        used = choice.used[..., None]
        return dataclasses.replace(
            changed,
            output=jnp.where(used[..., None], changed.output, attended.output),
            left=jnp.where(used, changed.left, attended.left),
        )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PromptBank:
    """N prompts; `PromptBricks` of the decoder.

    Attributes:
      leaves: `embeddings` `[N, P, D]` and `length` `[N]`.
      rows: as of `Bank`.
      form: of the keys and values that the model makes of them.
    """

    leaves: Leaves
    rows: Int[Array, "M"]
    form: MemoryForm = dataclasses.field(metadata={"static": True})

    def encoded(self, encode: Encode) -> Mapping[str, MemoryBank]:
        """Returns the prompts' keys and values by segment, stacked over its layers."""
        length = self.leaves["length"]
        found = {}
        for name, cache in encode(self.leaves["embeddings"], length).items():
            shape = (*cache.keys.shape[:3], -1)
            layers = len(cache.keys)
            leaves = {
                "keys": cache.keys.reshape(shape),
                "values": cache.values.reshape(shape),
                "length": jnp.broadcast_to(length, (layers, *length.shape)),
            }
            rows = jnp.broadcast_to(self.rows, (layers, *self.rows.shape))
            found[name] = MemoryBank(leaves, rows, self.form)
        return found
