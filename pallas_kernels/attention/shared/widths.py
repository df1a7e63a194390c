"""Vectors of width 0, which implementations need not know.

Without a query's and a key's numbers all logits are 0; without a value's the results that depend on
none are still asked for.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


def at_least_one(
    query: jax.Array, key: jax.Array, value: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Query, key and value with one column of zeros in place of none."""

    def filled(x: jax.Array) -> jax.Array:
        return x if x.shape[-1] else jnp.zeros((*x.shape[:-1], 1), x.dtype)

    return filled(query), filled(key), filled(value)
