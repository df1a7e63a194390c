"""What a rotary position embedding is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from modbrick.config.checks import require, require_finite


@dataclass(frozen=True)
class RopeConfig:
    """Rotary position embedding (arXiv 2104.09864) and the usual scalings of its frequencies.

    Attributes:
      base: wavelength base (theta).
      fraction: share of each head's width that is rotated, from the front.
      scaling: `none`; `linear` (positions divided by `factor`); `llama3` (low frequencies divided
        by `factor`, blended between the two frequency factors); `yarn` (arXiv 2309.00071, section
        3).
      factor: by how much the context is stretched.
      original_context: context length before stretching (llama3, yarn), in tokens.
      low_frequency_factor, high_frequency_factor: the blend's bounds (llama3).
      beta_fast, beta_slow: the ramp's bounds in rotations over the original context (yarn).
      attention_factor: multiplier of the rotated queries and keys (yarn); None: 0.1 ln(factor) + 1.
    """

    base: float = 10_000.0
    fraction: float = 1.0
    scaling: Literal["none", "linear", "llama3", "yarn"] = "none"
    factor: float = 1.0
    original_context: int | None = None
    low_frequency_factor: float = 1.0
    high_frequency_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None

    @property
    def stretched_from(self) -> int:
        """The original context, which llama3 and yarn scalings have."""
        assert self.original_context is not None, "checked when the config was made"
        return self.original_context

    def __post_init__(self) -> None:
        require_finite(self, "rope")
        require(self.base > 0, f"rope base must be positive, got {self.base}")
        require(0 < self.fraction <= 1, f"rope fraction must be in (0, 1], got {self.fraction}")
        require(self.factor >= 1, f"rope factor must be at least 1, got {self.factor}")
        require(
            self.scaling != "llama3" or self.high_frequency_factor > self.low_frequency_factor,
            f"rope high_frequency_factor must exceed low_frequency_factor, got "
            f"{self.high_frequency_factor} and {self.low_frequency_factor}",
        )
        if self.scaling in ("llama3", "yarn"):
            require(
                self.original_context is not None,
                f"rope scaling {self.scaling!r} needs original_context",
            )
            require(
                self.stretched_from >= 1,
                f"rope original_context must be at least 1, got {self.original_context}",
            )
        if self.scaling == "yarn":
            require(self.base > 1, f"rope base must exceed 1 for 'yarn', got {self.base}")
            require(
                self.beta_fast > 0 and self.beta_slow > 0,
                f"rope beta_fast and beta_slow must be positive, got "
                f"{self.beta_fast} and {self.beta_slow}",
            )
