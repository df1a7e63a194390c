"""Rotary position embedding and its scalings."""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from modbrick.config import LinearScaling, Llama3Scaling, RopeConfig, YarnScaling


def rope_frequencies(config: RopeConfig, head_width: int) -> np.ndarray:
    """Returns the angle per position of each rotated pair, float32 `[rotated/2]`, in radians.

    `llama3` divides frequencies whose wavelength exceeds original_context/low_frequency_factor by
    `factor`, keeps those below original_context/high_frequency_factor, and blends linearly between.
    `yarn` follows arXiv 2309.00071, section 3.2 ("NTK-by-parts").
    """
    rotated = int(head_width * config.fraction)
    exponents = np.arange(0, rotated, 2, dtype=np.float64) / rotated
    frequencies = config.base**-exponents
    match config.scaling:
        case LinearScaling() as scaling:
            frequencies = frequencies / scaling.factor
        case Llama3Scaling() as scaling:
            rotations = scaling.original_context * frequencies / (2 * np.pi)
            low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
            keep = np.clip((rotations - low) / (high - low), 0.0, 1.0)
            frequencies = (1 - keep) * frequencies / scaling.factor + keep * frequencies
        case YarnScaling() as scaling:
            low, high = (
                rotated
                * math.log(scaling.original_context / (beta * 2 * math.pi))
                / (2 * math.log(config.base))
                for beta in (scaling.beta_fast, scaling.beta_slow)
            )
            if scaling.truncated:
                low, high = math.floor(low), math.ceil(high)
            low, high = max(low, 0), min(high, rotated - 1)
            ramp = np.clip((np.arange(rotated // 2) - low) / ((high - low) or 0.001), 0.0, 1.0)
            frequencies = frequencies * (1 - ramp) + frequencies / scaling.factor * ramp
    return frequencies.astype(np.float32)


def rope_multiplier(config: RopeConfig) -> float:
    """Returns the factor of rotated values (arXiv 2309.00071, section 3.4): 1 but for yarn."""
    scaling = config.scaling
    if not isinstance(scaling, YarnScaling):
        return 1.0
    if scaling.attention_factor is not None:
        return scaling.attention_factor
    return 0.1 * math.log(scaling.factor) + 1.0 if scaling.factor > 1 else 1.0


def rotate(
    config: RopeConfig, x: Float[Array, "B S *heads W"], positions: Int[Array, "B S"]
) -> Float[Array, "B S *heads W"]:
    """Rotates pairs (i, i + rotated/2) of each head by position (arXiv 2104.09864), in float32.

    Args:
      config: base and scaling.
      x: queries or keys; any number of head axes between sequence and width.
      positions: of each token in its document.
    """
    frequencies = jnp.asarray(rope_frequencies(config, x.shape[-1]))
    half = frequencies.shape[0]
    angles = positions.astype(jnp.float32)[..., None] * frequencies
    angles = angles.reshape(*positions.shape, *(1,) * (x.ndim - 3), half)
    multiplier = rope_multiplier(config)
    cosine, sine = jnp.cos(angles) * multiplier, jnp.sin(angles) * multiplier
    values = x.astype(jnp.float32)
    first, second, rest = jnp.split(values, (half, 2 * half), axis=-1)
    rotated = (first * cosine - second * sine, second * cosine + first * sine, rest)
    return jnp.concatenate(rotated, axis=-1).astype(x.dtype)
