"""Softmax attention: the public import path of `pallas_kernels.attention.softmax`."""

from __future__ import annotations

from pallas_kernels.attention.softmax import (
    IMPLEMENTATIONS,
    Case,
    available_implementations,
    choose_implementation,
    softmax_attention,
)

__all__ = [
    "IMPLEMENTATIONS",
    "Case",
    "available_implementations",
    "choose_implementation",
    "softmax_attention",
]
