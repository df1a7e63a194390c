"""Stick-breaking attention: the public import path of `pallas_kernels.attention.stickbreaking`."""

from __future__ import annotations

from pallas_kernels.attention.stickbreaking import (
    IMPLEMENTATIONS,
    RESIDUAL,
    Case,
    StickbreakingOutput,
    available_implementations,
    choose_implementation,
    selected_implementation,
    stickbreaking_attention,
)

__all__ = [
    "IMPLEMENTATIONS",
    "RESIDUAL",
    "Case",
    "StickbreakingOutput",
    "available_implementations",
    "choose_implementation",
    "selected_implementation",
    "stickbreaking_attention",
]
