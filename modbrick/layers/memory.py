"""Attention to keys in front of every document, added to attention within it.

The order of the keys is their distance, and those in front are farther than all of a document's. So
stick-breaking attention gives them what is left of a token's stick,

    output + remainder (o_1 + r_1 (o_2 + r_2 ...)),

with o_i and r_i output and remainder over the i-th key, the nearest first, alone (arXiv 2410.17980,
equation 2, cut in front of the document). Softmax attention divides the sum over all keys by all of
their weights: outputs are averaged by the sums of both sides, which the log-sum-exp says.
"""

from __future__ import annotations

import dataclasses
from typing import Literal, Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from modbrick.parallel.choice import Choice


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Attended:
    """Queries of a call, and what attention has given them so far.

    Attributes:
      queries: as attention reads them; N query heads, those that share a key head adjacent.
      positions: of the tokens in their documents.
      output: of attention so far.
      left: float32: of stick-breaking attention the remainder of the stick, of softmax attention
        the log-sum-exp; None: nothing stands in front.
      groups: key heads, G.
      scale: factor of logits.
      window: keys this many positions back, or more, are not seen; None: all are.
      kind: of attention.
    """

    queries: Float[Array, "B S N W"]
    positions: Int[Array, "B S"]
    output: Float[Array, "B S N W"]
    left: Float[Array, "B S N"] | None
    groups: int = dataclasses.field(metadata={"static": True})
    scale: float = dataclasses.field(metadata={"static": True})
    window: int | None = dataclasses.field(metadata={"static": True})
    kind: Literal["stickbreaking", "softmax"] = dataclasses.field(metadata={"static": True})

    def sees(self, length: Int[Array, "..."], place: Int[Array, "..."]) -> Bool[Array, "..."]:
        """Returns whether tokens see a place of keys in front, `length` of which stand there.

        Place j stands at position j - length; arguments and result are `[B, S, ...]`.
        """
        there = place < length
        if self.window is None:
            return there
        positions = self.positions.reshape(*self.positions.shape, *(1,) * (there.ndim - 2))
        return there & (positions + length - place < self.window)

    def shared(
        self,
        logits: Float[Array, "B S N M"],
        seen: Bool[Array, "B S 1 M"],
        factors: Float[Array, "B S 1 M"] | None,
    ) -> tuple[Float[Array, "B S N M"], Float[Array, "B S N"], Float[Array, "B S N"]]:
        """Shares out attention between what is done and M keys in front, the first the farthest.

        Args:
          logits: of the keys, scaled.
          seen: which of them a token sees.
          factors: by which the attention to each is multiplied: e^logit, or the share of the stick
            that it takes; None: 1.

        Returns:
          The weight of each key, the factor of the output so far, and what is left in front of
          them all; float32.
        """
        assert self.left is not None, "attention was asked what it left"
        if self.kind == "stickbreaking":
            return self._broken(logits, seen, factors)
        lowest = jnp.finfo(jnp.float32).min
        logits = jnp.where(seen, logits, -jnp.inf)
        largest = jnp.maximum(jnp.maximum(self.left, logits.max(-1, initial=lowest)), lowest)
        largest = jax.lax.stop_gradient(largest)
        weights = jnp.exp(logits - largest[..., None])
        weights = weights if factors is None else weights * factors
        done = jnp.exp(self.left - largest)
        total = done + weights.sum(-1)
        some = total != 0
        total = jnp.where(some, total, 1.0)
        left = jnp.where(some, largest + jnp.log(total), -jnp.inf)
        return weights / total[..., None], done / total, left

    def _broken(
        self, logits: Array, seen: Array, factors: Array | None
    ) -> tuple[Array, Array, Array]:
        assert self.left is not None, "attention was asked what it left"
        take, keep = jax.nn.sigmoid(logits), jax.nn.sigmoid(-logits)
        if factors is not None:
            take, keep = factors * take, keep + (1.0 - factors) * take
        take, keep = jnp.where(seen, take, 0.0), jnp.where(seen, keep, 1.0)
        kept = jax.lax.cumprod(keep, axis=keep.ndim - 1, reverse=True)
        nearer = jnp.concatenate([kept[..., 1:], jnp.ones_like(kept[..., :1])], axis=-1)
        weights = self.left[..., None] * take * nearer
        return weights, jnp.ones_like(self.left), self.left * kept[..., 0]


class MemoryBrick(Protocol):
    """Interface of bricks with keys and values in front of every document."""

    def __call__(self, attended: Attended, choice: Choice | None) -> Attended:
        """Returns what each token got once it has attended to the brick's keys too."""
        ...
