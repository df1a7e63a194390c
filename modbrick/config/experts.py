"""Configs of a bank of experts and of its router."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from modbrick.config.checks import require


@dataclass(frozen=True)
class RouterConfig:
    """Config of a router, which chooses experts for each token.

    Attributes:
      kind: `linear` (no bias); `mlp` (hidden layer with bias, exact GELU, output without bias);
        `gmm` (cosine similarity of a projection to learned centroids, times exp(temperature)).
      hidden: width of the hidden layer (mlp) or of the centroids (gmm); `linear` has none and
        keeps the default.
      sample_top_k: in training, how many of the K experts are sampled without replacement instead
        of taken from the top.
      gates: `probability` (softmax over all experts, taken as it is) or `renormalised` (divided by
        the sum over the chosen K).
    """

    kind: Literal["linear", "mlp", "gmm"] = "mlp"
    hidden: int = 256
    sample_top_k: int = 0
    gates: Literal["probability", "renormalised"] = "probability"

    def __post_init__(self) -> None:
        require(self.hidden > 0, f"router hidden width must be positive, got {self.hidden}")
        require(self.sample_top_k >= 0, f"sample_top_k is negative: {self.sample_top_k}")
        if self.kind == "linear":  # equal routers have equal configs
            object.__setattr__(self, "hidden", type(self).hidden)


@dataclass(frozen=True)
class ExpertsConfig:
    """A bank of experts and the router that chooses `top_k` of them for each token.

    `output_bias` adds one bias of width D, shared by the experts, to the combined output.
    """

    count: int
    top_k: int
    router: RouterConfig = RouterConfig()
    output_bias: bool = False

    def __post_init__(self) -> None:
        require(self.count >= 1, f"experts count must be at least 1, got {self.count}")
        require(
            1 <= self.top_k <= self.count,
            f"top_k must be between 1 and the number of experts ({self.count}), got {self.top_k}",
        )
        require(
            self.router.sample_top_k <= self.top_k,
            f"sample_top_k ({self.router.sample_top_k}) exceeds top_k ({self.top_k})",
        )
