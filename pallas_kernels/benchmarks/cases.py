"""The shapes that kernels are judged at."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np

from pallas_kernels.grouped_matmul import RoutingPlan, routing_plan


@dataclasses.dataclass(frozen=True)
class ExpertCase:
    """Sparse experts of a layer.

    Attributes:
        name: of the case.
        kind: "feed_forward" (both products, gates and sum) or "projection" (the query map and the
            output reduce of attention experts, one after the other).
        tokens: T.
        experts_per_token: K.
        width: D.
        hidden: F; the other width of a projection.
        experts: E.
        load: "balanced", or "zipf": tokens by the inverse of an expert's rank, more than half to
            the first, and the last quarter of the experts empty.
    """

    name: str
    kind: str
    tokens: int
    experts_per_token: int
    width: int
    hidden: int
    experts: int
    load: str = "balanced"

    def __post_init__(self) -> None:
        if self.kind not in ("feed_forward", "projection"):
            raise ValueError(f"kind={self.kind!r} is neither 'feed_forward' nor 'projection'")
        if self.load not in ("balanced", "zipf"):
            raise ValueError(f"load={self.load!r} is neither 'balanced' nor 'zipf'")

    @property
    def slots(self) -> int:
        """T * K."""
        return self.tokens * self.experts_per_token

    @property
    def flops(self) -> int:
        """Useful operations of the forward pass; a backward pass has twice as many."""
        return 2 * 2 * self.slots * self.width * self.hidden

    def expert_indices(self, seed: int) -> np.ndarray:
        """int32 [T, K]; the K experts of a token differ if the load is balanced."""
        rng = np.random.default_rng(seed)
        shape = self.tokens, self.experts_per_token
        if self.load == "balanced":
            # Each expert as often as any other, up to rounding, in random order.
            noise = rng.random((self.tokens, self.experts))
            return np.argsort(noise, axis=1)[:, : self.experts_per_token].astype(np.int32)
        live = self.experts - self.experts // 4
        weights = 1.0 / np.arange(1, live + 1)
        weights[0] = 1.1 * weights[1:].sum()
        return rng.choice(live, shape, p=weights / weights.sum()).astype(np.int32)

    def plan(self, seed: int = 0) -> RoutingPlan:
        """The routing plan, of concrete arrays."""
        return routing_plan(jnp.asarray(self.expert_indices(seed)), self.experts)


@dataclasses.dataclass(frozen=True)
class AttentionCase:
    """Causal attention.

    Attributes:
        name: of the case.
        batch: B.
        length: S, of queries and keys.
        heads: H.
        width: of a head.
    """

    name: str
    batch: int
    length: int
    heads: int
    width: int

    @property
    def pairs(self) -> float:
        """Visible pairs of 128 queries and 128 keys, those on the diagonal included."""
        blocks = self.length / 128
        return self.batch * self.heads * blocks * (blocks + 1) / 2

    @property
    def flops(self) -> int:
        """Useful operations of the forward pass of softmax attention."""
        return 2 * 2 * self.batch * self.heads * self.length * (self.length + 1) // 2 * self.width


EXPERT_CASES = {
    case.name: case
    for case in (
        ExpertCase("molm", "feed_forward", 16384, 2, 1024, 2048, 32),
        ExpertCase("molm_attention", "projection", 16384, 2, 1024, 1024, 16),
        ExpertCase("mixtral", "feed_forward", 8192, 2, 4096, 14336, 8),
        ExpertCase("fine_grained", "feed_forward", 16384, 8, 2048, 1024, 64),
        ExpertCase("skewed", "feed_forward", 16384, 2, 1024, 2048, 32, "zipf"),
    )
}

# Static figures are per pair of blocks, so that fewer heads show the same of long sequences.
STATIC_ATTENTION_CASES = {
    case.name: case
    for case in (
        AttentionCase("s4096", 1, 4096, 12, 128),
        AttentionCase("s8192", 1, 8192, 4, 128),
        AttentionCase("s16384", 1, 16384, 2, 128),
    )
}
TIMED_ATTENTION_CASES = {
    case.name: case
    for case in (
        AttentionCase("s4096", 4, 4096, 12, 128),
        AttentionCase("s8192", 4, 8192, 12, 128),
        AttentionCase("s16384", 4, 16384, 12, 128),
    )
}


def cases_of(op: str) -> Mapping[str, ExpertCase | AttentionCase]:
    """The cases that an op is compiled at, by name."""
    return EXPERT_CASES if op == "grouped_matmul" else STATIC_ATTENTION_CASES
