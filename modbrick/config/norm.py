"""Config of a normalisation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from modbrick.config.checks import require, require_finite


@dataclass(frozen=True)
class NormConfig:
    """Normalisation over the last axis: `layer` (mean and variance) or `rms` (mean square only)."""

    kind: Literal["layer", "rms"] = "layer"
    epsilon: float = 1e-5
    bias: bool = True

    def __post_init__(self) -> None:
        require_finite(self, "norm")
        require(self.epsilon > 0, f"norm epsilon must be positive, got {self.epsilon}")
        require(
            not (self.kind == "rms" and self.bias), "an rms norm has no bias: set bias to False"
        )
