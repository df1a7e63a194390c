"""Sampling: which token comes next, given the logits."""

from __future__ import annotations

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from modbrick.errors import InputError


@dataclass(frozen=True)
class SamplingConfig:
    """Config of drawing the next token; the defaults draw from the model's own distribution.

    Attributes:
      temperature: the logits are divided by it; 0 takes the likeliest token.
      top_k: only the k likeliest tokens can be drawn; None: all.
      top_p: only the likeliest tokens that together reach this probability can be drawn (nucleus
        sampling, arXiv 1904.09751, section 3.1), after temperature and `top_k`; None: all.

    Examples:
        >>> import modbrick
        >>> modbrick.SamplingConfig(temperature=0.0)  # always the likeliest token
        SamplingConfig(temperature=0.0, top_k=None, top_p=None)
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf:
            raise InputError(f"temperature must be 0 or more, got {self.temperature}")
        if self.top_k is not None and self.top_k < 1:
            raise InputError(f"top_k must be at least 1, got {self.top_k}")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise InputError(f"top_p must be in (0, 1], got {self.top_p}")


DEFAULT_SAMPLING = SamplingConfig()
"""From the model's own distribution."""
GREEDY = SamplingConfig(temperature=0.0)
"""Always the likeliest token."""


def greedy(logits: Float[Array, "B V"]) -> Int[Array, "B"]:
    """Returns the likeliest token of each sequence, the lowest id among equals."""
    return jnp.argmax(logits, axis=-1).astype(jnp.int32)


def candidates(
    logits: Float[Array, "B V"],
    *,
    temperature: Float[Array, ""] | float = 1.0,
    top_k: int | None = None,
    top_p: Float[Array, ""] | float | None = None,
) -> tuple[Float[Array, "B C"], Int[Array, "B C"]]:
    """Returns the tokens that can be drawn, likeliest first, and what they are drawn by.

    Args:
      logits: of the next token.
      temperature: above 0.
      top_k: how many tokens remain, C; None: C = V. Among equals the lower ids remain.
      top_p: a token remains if those before it have less than this probability together, so the
        likeliest always does.

    Returns:
      Unnormalised log-probabilities in float32, `-inf` where a token was dropped; and ids.
    """
    vocabulary = logits.shape[-1]
    count = vocabulary if top_k is None else min(top_k, vocabulary)
    values, ids = jax.lax.top_k(logits.astype(jnp.float32), count)
    values = _scaled(values, values[..., :1], temperature)
    if top_p is not None:
        probabilities = jax.nn.softmax(values, axis=-1)
        before = jnp.cumsum(probabilities, axis=-1) - probabilities
        # Rounding must not drop the likeliest.
        dropped = (before >= top_p).at[..., 0].set(False)
        values = jnp.where(dropped, -jnp.inf, values)
    return values, ids.astype(jnp.int32)


def sample(
    random_keys: Key[Array, "B"],
    logits: Float[Array, "B V"],
    *,
    temperature: Float[Array, ""] | float = 1.0,
    top_k: int | None = None,
    top_p: Float[Array, ""] | float | None = None,
) -> Int[Array, "B"]:
    """Draws a token for each sequence with its own key; other arguments as of `candidates`.

    A sequence's token depends on its own key and logits only, whatever else is in the batch.
    """
    if top_k is None and top_p is None:  # nothing to sort for
        values = logits.astype(jnp.float32)
        values = _scaled(values, values.max(-1, keepdims=True), temperature)
        return jax.vmap(jax.random.categorical)(random_keys, values).astype(jnp.int32)
    values, ids = candidates(logits, temperature=temperature, top_k=top_k, top_p=top_p)
    drawn = jax.vmap(jax.random.categorical)(random_keys, values)
    return jnp.take_along_axis(ids, drawn[..., None], axis=-1)[..., 0]


def _scaled(
    values: Float[Array, "B V"],
    largest: Float[Array, "B 1"],
    temperature: Float[Array, ""] | float,
) -> Float[Array, "B V"]:
    """Divides by the temperature, relative to the largest value: however small, it stays 0."""
    smallest = jnp.finfo(jnp.float32).tiny  # below it, 0 / temperature is 0 / 0
    return (values - largest) / jnp.maximum(temperature, smallest)
