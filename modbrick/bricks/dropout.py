"""Dropout of what bricks read at a site, in training (arXiv 1207.0580)."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.random import fold_in
from jaxtyping import Array, Float, Int, Key

from modbrick.layers.offer import Offer


def dropped(
    inputs: Float[Array, "B S I"] | Int[Array, "B S"],
    offer: Offer,
    ids: Int[Array, "B S"],
    rates: Sequence[float],
) -> tuple[Array, Offer]:
    """Sets entries of a site's inputs to zero and multiplies the others by 1 / (1 - rate).

    Which ones, depends on the row's random key, the site, the brick and the token's index in its
    row. Ids of tokens, which are what the embedding reads, stay.

    Args:
      inputs: of the site.
      offer: of the site, with random keys; inputs of slots are dropped likewise.
      ids: of the brick that reads them, by token; -1: none.
      rates: of all bricks, by id.

    Returns:
      Inputs in float32, and what the site offers.
    """
    if jnp.issubdtype(inputs.dtype, jnp.integer):
        return inputs, offer
    keys = _keys(offer, ids)
    # Of numpy, so that it stays a constant of a traced function.
    kept = 1.0 - jnp.asarray(np.array(rates, np.float32))[jnp.maximum(ids, 0)]

    def drop(x: Array) -> Array:
        share = kept.reshape(*kept.shape, *(1,) * (x.ndim - 2))
        drawn = jax.vmap(jax.vmap(lambda key: jax.random.uniform(key, x.shape[2:])))(keys)
        return jnp.where(drawn < share, x.astype(jnp.float32) / share, 0.0)

    slots = None if offer.slots is None else drop(offer.slots)
    return drop(inputs), dataclasses.replace(offer, slots=slots)


def keys_of_tokens(keys: Key[Array, "B"], tokens: int) -> Key[Array, "B S"]:
    """Returns a random key for each of so many tokens of each row."""
    return jax.vmap(jax.vmap(fold_in, (None, 0)), (0, None))(keys, jnp.arange(tokens))


def _keys(offer: Offer, ids: Int[Array, "B S"]) -> Key[Array, "B S"]:
    """Returns the key of each token and its brick at a site."""
    keys = offer.random_keys
    assert keys is not None, "without keys nothing is dropped"
    if keys.ndim == 1:
        keys = keys_of_tokens(keys, ids.shape[1])
    number = np.uint32(zlib.crc32(offer.site.encode()))
    of_site = jax.vmap(jax.vmap(lambda key: fold_in(key, number)))(keys)
    return jax.vmap(jax.vmap(fold_in))(of_site, ids)
