"""Config of a rotary position embedding."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from modbrick.config.checks import require, require_finite


@dataclass(frozen=True)
class LinearScaling:
    """Positions divided by `factor`, by which the context is stretched."""

    factor: float = 1.0
    kind: Literal["linear"] = "linear"

    def __post_init__(self) -> None:
        _check_factor(self)


@dataclass(frozen=True, kw_only=True)
class Llama3Scaling:
    """Low frequencies divided by `factor`, blended between two bounds, as Llama 3.1 does.

    Attributes:
      factor: by how much the context is stretched.
      original_context: context length before stretching, in tokens.
      low_frequency_factor, high_frequency_factor: the blend's bounds, in rotations over the
        original context.
    """

    factor: float = 1.0
    original_context: int
    low_frequency_factor: float = 1.0
    high_frequency_factor: float = 4.0
    kind: Literal["llama3"] = "llama3"

    def __post_init__(self) -> None:
        _check_factor(self)
        _check_original_context(self.original_context)
        require(
            self.high_frequency_factor > self.low_frequency_factor,
            f"rope high_frequency_factor must exceed low_frequency_factor, got "
            f"{self.high_frequency_factor} and {self.low_frequency_factor}",
        )


@dataclass(frozen=True, kw_only=True)
class YarnScaling:
    """YaRN (arXiv 2309.00071, section 3): high frequencies kept, low ones divided by `factor`.

    Attributes:
      factor: by how much the context is stretched.
      original_context: context length before stretching, in tokens.
      beta_fast, beta_slow: the ramp's bounds, in rotations over the original context.
      attention_factor: multiplier of the rotated queries and keys; None: 0.1 ln(factor) + 1.
      truncated: the ramp begins and ends at whole pairs.
    """

    factor: float = 1.0
    original_context: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    truncated: bool = True
    kind: Literal["yarn"] = "yarn"

    def __post_init__(self) -> None:
        _check_factor(self)
        _check_original_context(self.original_context)
        require(
            self.beta_fast > 0 and self.beta_slow > 0,
            f"rope beta_fast and beta_slow must be positive, got "
            f"{self.beta_fast} and {self.beta_slow}",
        )


RopeScaling = LinearScaling | Llama3Scaling | YarnScaling


@dataclass(frozen=True)
class RopeConfig:
    """Rotary position embedding (arXiv 2104.09864).

    Attributes:
      base: wavelength base (theta).
      fraction: share of each head's width that is rotated, from the front.
      scaling: of the frequencies, to stretch the context; None: none.
    """

    base: float = 10_000.0
    fraction: float = 1.0
    scaling: RopeScaling | None = None

    def __post_init__(self) -> None:
        require_finite(self, "rope")
        require(self.base > 0, f"rope base must be positive, got {self.base}")
        require(0 < self.fraction <= 1, f"rope fraction must be in (0, 1], got {self.fraction}")
        require(
            not isinstance(self.scaling, YarnScaling) or self.base > 1,
            f"rope base must exceed 1 for 'yarn', got {self.base}",
        )

    @staticmethod
    def upgrade(data: Mapping[str, Any]) -> dict[str, Any]:
        """Reads a record of before, when all scalings shared one set of flat fields."""
        own = {name: data[name] for name in ("base", "fraction") if name in data}
        flat = data.keys() & _FIELDS_OF_SCALING.keys()
        if not isinstance(data.get("scaling"), str) and not flat:
            return dict(data)
        kind = data.get("scaling", "none")
        unknown = {name: data[name] for name in data.keys() - own.keys() - flat - {"scaling"}}
        kept = {name: data[name] for name in flat if kind in _FIELDS_OF_SCALING[name]}
        return own | unknown | {"scaling": None if kind == "none" else {"kind": kind, **kept}}


_FIELDS_OF_SCALING = {
    "factor": ("linear", "llama3", "yarn"),
    "original_context": ("llama3", "yarn"),
    "low_frequency_factor": ("llama3",),
    "high_frequency_factor": ("llama3",),
    "beta_fast": ("yarn",),
    "beta_slow": ("yarn",),
    "attention_factor": ("yarn",),
}


def _check_factor(scaling: RopeScaling) -> None:
    require_finite(scaling, "rope")
    require(scaling.factor >= 1, f"rope factor must be at least 1, got {scaling.factor}")


def _check_original_context(context: int) -> None:
    require(context >= 1, f"rope original_context must be at least 1, got {context}")
