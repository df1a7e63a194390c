"""Is routing well? Figures per layer from the totals that the losses use."""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Float

from modbrick.layers.router import RouterStatistics

LEAST_ENTROPY = 0.5
"""Of the load, below which a layer counts as collapsed."""
JUDGED_FROM = 100
"""Choices that a uniform load would give each expert, from which on a layer is judged at all."""


@dataclasses.dataclass(frozen=True)
class RouterHealth:
    """Health of one router by layer, `[L]`, over the tokens counted.

    Attributes:
      load: share of choices that each expert receives, `[L, E]`; sums to 1.
      load_entropy: entropy of the load over log E: 1 is uniform, 0 is one expert for all.
      largest_share: load of the busiest expert.
      dead_experts: number of experts that no token chose.
      gate_mass: mean over tokens of the sum of the chosen gates.
      dropped: number of choices that found no room in an exchange between devices.
      collapsed: 1 where, over enough tokens to tell, an expert is dead or the entropy of the load
        is below `LEAST_ENTROPY`; else 0.
    """

    load: Float[np.ndarray, "L E"]
    load_entropy: Float[np.ndarray, " L"]
    largest_share: Float[np.ndarray, " L"]
    dead_experts: Float[np.ndarray, " L"]
    gate_mass: Float[np.ndarray, " L"]
    dropped: Float[np.ndarray, " L"]
    collapsed: Float[np.ndarray, " L"]

    @classmethod
    def from_statistics(cls, statistics: RouterStatistics) -> RouterHealth:
        """Computes health from totals, on the host."""
        choices = np.asarray(statistics.choices, np.float64)
        tokens = np.maximum(np.asarray(statistics.tokens, np.float64), 1.0)
        load = choices / np.maximum(choices.sum(-1, keepdims=True), 1.0)
        logs = np.log(load, where=load > 0, out=np.zeros_like(load))
        uniform = np.log(choices.shape[-1]) or 1.0  # a single expert has entropy 0
        entropy = -(load * logs).sum(-1) / uniform
        dead = (choices == 0).sum(-1)
        experts = choices.shape[-1]
        judged = (choices.sum(-1) >= JUDGED_FROM * experts) & (experts > 1)
        return cls(
            load=load,
            load_entropy=entropy,
            largest_share=load.max(-1),
            dead_experts=dead.astype(np.float64),
            gate_mass=np.asarray(statistics.gates, np.float64).sum(-1) / tokens,
            dropped=np.asarray(statistics.dropped, np.float64),
            collapsed=(judged & ((dead > 0) | (entropy < LEAST_ENTROPY))).astype(np.float64),
        )

    def scalars(self) -> dict[str, float]:
        """Returns the figures to watch: means over layers, and the worst layer's largest share."""
        return {
            "load_entropy": float(self.load_entropy.mean()),
            "largest_share": float(self.largest_share.max()),
            "dead_experts": float(self.dead_experts.sum()),
            "gate_mass": float(self.gate_mass.mean()),
            "dropped": float(self.dropped.sum()),
            "collapsed": float(self.collapsed.sum()),
        }

    def to_mapping(self) -> dict[str, object]:
        """Returns the figures over all layers, and every one by layer, JSON-able."""
        by_layer = {
            field.name: np.round(getattr(self, field.name), 5).tolist()
            for field in dataclasses.fields(self)
        }
        return {**self.scalars(), "layers": by_layer}
