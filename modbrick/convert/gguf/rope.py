"""Rotary frequencies of GGUF files of the Llama family: metadata, and the tensor `rope_freqs`.

llama.cpp knows the scaling that came with Llama 3.1 only as a tensor of divisors, one for each
rotated pair. A divisor is 1 above a high frequency, `factor` below a low one, and its inverse is
linear in the frequency between the two, so that the scaling's settings follow from it.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from modbrick.config import LinearScaling, Llama3Scaling, RopeConfig, YarnScaling
from modbrick.convert.gguf.keys import Keys
from modbrick.errors import InputError

ROPE_KEYS = (
    "rope.dimension_count",
    "rope.freq_base",
    "rope.scale_linear",
    "rope.scaling.type",
    "rope.scaling.factor",
    "rope.scaling.original_context_length",
    "rope.scaling.finetuned",
    "rope.scaling.attn_factor",
    "rope.scaling.yarn_ext_factor",
    "rope.scaling.yarn_attn_factor",
    "rope.scaling.yarn_beta_fast",
    "rope.scaling.yarn_beta_slow",
)
"""Keys that say how frequencies are, after the architecture's prefix."""

TOLERANCE = 1e-5
"""Relative error of divisors that settings explain; they are stored in float32."""


USUAL_HIGH = 4.0
"""`high_frequency_factor` of the models of Llama 3.1 and later."""


def rope_config(
    keys: Keys, head_width: int, context: int, divisors: np.ndarray | None
) -> RopeConfig:
    """Returns the rotary embedding of a model.

    Args:
      keys: the metadata.
      head_width: of queries and keys.
      context: tokens that the model was trained for.
      divisors: values of the tensor `rope_freqs.weight`, if there is one.

    Raises:
      InputError: anything that this library would compute otherwise, by name.
    """
    rotated = keys.count("rope.dimension_count", head_width)
    if rotated != head_width:
        raise keys.error("rope.dimension_count", f"only the head width, {head_width}, is supported")
    base = keys.number("rope.freq_base", 10_000.0)
    # The first of the two is an old name, and what no scaling is is not said by all writers.
    factor = keys.number("rope.scaling.factor", keys.number("rope.scale_linear", 1.0)) or 1.0
    kind = keys.text("rope.scaling.type", "linear")
    for name in ("attn_factor", "yarn_ext_factor", "yarn_attn_factor"):
        if keys.number(f"rope.scaling.{name}", 1.0) != 1:
            raise keys.error(f"rope.scaling.{name}", "only 1 is supported")
    if kind not in ("none", "linear", "yarn"):
        raise keys.error("rope.scaling.type", "it can be none, linear, yarn")
    if divisors is not None:
        if kind != "none" and factor != 1:
            raise keys.error("rope.scaling.type", "it cannot be combined with rope_freqs.weight")
        return _from_divisors(divisors, base, head_width, keys.where)
    if kind == "none" or factor == 1:
        return RopeConfig(base=base)
    if kind == "linear":
        return RopeConfig(base=base, scaling=LinearScaling(factor))
    scaling = YarnScaling(
        factor=factor,
        original_context=keys.count("rope.scaling.original_context_length", context),
        beta_fast=keys.number("rope.scaling.yarn_beta_fast", 32.0),
        beta_slow=keys.number("rope.scaling.yarn_beta_slow", 1.0),
    )
    return RopeConfig(base=base, scaling=scaling)


def _from_divisors(divisors: np.ndarray, base: float, width: int, where: str) -> RopeConfig:
    """Returns the settings of the Llama 3.1 scaling that make these divisors.

    With turns t_i = frequency_i / 2 pi and a divisor d_i between 1 and `factor`, the share of the
    original frequency, s_i = (1/d_i - 1/factor) / (1 - 1/factor), is (C t_i - low) / (high - low).
    Only two of C, low and high follow from that line, for multiples of all three make the same
    divisors; so low is 1, as in every such model. Where a single pair lies on it, high is 4.
    """
    where = f"{where}: rope_freqs.weight"
    divisors = np.asarray(divisors, np.float64)
    if divisors.shape != (width // 2,):
        raise InputError(f"{where} has shape {list(divisors.shape)}, expected [{width // 2}]")
    if not (np.isfinite(divisors).all() and (divisors > 0).all()):
        raise InputError(f"{where} has values that are no divisors of frequencies")
    if np.abs(divisors - 1).max(initial=0.0) <= TOLERANCE:
        return RopeConfig(base=base)
    turns = base ** -(np.arange(0, width, 2) / width) / (2 * math.pi)
    factor = _rounded(divisors.max())
    shares = (1 / divisors - 1 / factor) / (1 - 1 / factor) if factor > 1 else divisors * np.nan
    between = (shares > TOLERANCE) & (shares < 1 - TOLERANCE)
    high = USUAL_HIGH
    if between.sum() > 1:
        intercept = np.polyfit(turns[between], shares[between], 1)[1]
        high = _rounded(1 - 1 / intercept) if intercept < 0 else high
    if between.any() and high > 1:
        context = round(float(((shares * (high - 1) + 1) / turns)[between].mean()))
        kept = np.clip((context * turns - 1) / (high - 1), 0, 1)
        rebuilt = 1 / ((1 - kept) / factor + kept)
        if context >= 1 and np.abs(rebuilt / divisors - 1).max() <= TOLERANCE:
            scaling = Llama3Scaling(
                factor=factor,
                original_context=context,
                low_frequency_factor=1.0,
                high_frequency_factor=high,
            )
            return RopeConfig(base=base, scaling=scaling)
    raise InputError(
        f"{where} is not the scaling of Llama 3.1, the only one that is supported as a tensor"
    )


def _rounded(value: Any) -> float:
    """Returns the shortest number of five digits, for settings are written by people."""
    return float(f"{value:.5g}")
