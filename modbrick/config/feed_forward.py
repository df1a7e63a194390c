"""Config of a feed-forward layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from modbrick.config.checks import require
from modbrick.config.experts import ExpertsConfig

Activation = Literal["gelu", "gelu_tanh", "silu", "relu", "relu_squared", "tanh", "identity"]


@dataclass(frozen=True)
class FeedForwardConfig:
    """Feed-forward layer: down(activation(up x)), or down(activation(gate x) * up x) if `gated`.

    With `experts`, each expert is such a layer of hidden width `hidden`, and `bias` must be False.
    """

    hidden: int
    activation: Activation = "gelu_tanh"
    gated: bool = False
    bias: bool = False
    experts: ExpertsConfig | None = None

    def __post_init__(self) -> None:
        require(self.hidden >= 1, f"feed_forward hidden must be at least 1, got {self.hidden}")
        require(
            not (self.bias and self.experts),
            "feed-forward experts have no bias of their own (use experts.output_bias)",
        )
