"""Softmax attention: the public import path of `pallas_kernels.attention.softmax`."""

from __future__ import annotations

from pallas_kernels.attention.softmax import (
    IMPLEMENTATIONS,
    Case,
    SoftmaxOutput,
    available_implementations,
    choose_implementation,
    softmax_attention,
    softmax_attention_and_log_sum,
)

__all__ = [
    "IMPLEMENTATIONS",
    "Case",
    "SoftmaxOutput",
    "available_implementations",
    "choose_implementation",
    "softmax_attention",
    "softmax_attention_and_log_sum",
]
