"""What both TPU kernels compute in a tile of logits: the odds, and sums over nearer keys.

A tile is `[keys, rows]` in running order (see `tpu_layout`): a list of registers' worth of keys,
`[8, rows]` each, nearest first.

The stick is kept as its logarithm: a key with logit z takes `softplus(z)` off it. Within a run the
sum of these is the logarithm of the product of `1 + exp(z)`, whose factors are exact to a rounding
error: one logarithm for a key, of the product and not of the factor, loses nothing where the odds
are small. All is to base 2, the base of the hardware's exponential and logarithm.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.stickbreaking_attention.tpu_layout import SUBLANES

LOG2_E = math.log2(math.e)
# Logits, to base 2, are bounded to this. A key with odds of 2**92 leaves nothing of the stick that
# counts in float32, and its odds can still be multiplied with those of a nearer key.
_LARGEST_LOGIT = 92.0

Sight = Callable[[int], jax.Array]


def sight(
    start: jax.Array,
    run: int,
    last: jax.Array,
    first: jax.Array | None,
    query_ids: jax.Array | None,
    key_ids: jax.Array | None,
) -> Sight:
    """Returns the function that tells which keys of the n-th register the rows see.

    Args:
      start: index of the first key of the block.
      run: keys of a run.
      last: int32 `[1, rows]`, the nearest key seen.
      first: int32 `[1, rows]` or None, the farthest.
      query_ids: int32 `[1, rows]` or None, segment ids.
      key_ids: int32 `[8, run]` or None, the nearest key of each run first.
    """
    shape = (SUBLANES, last.shape[1])
    # Index of the farthest key of the sublane's run.
    base = start + run * jax.lax.broadcasted_iota(jnp.int32, shape, 0)
    last = last - base
    first = None if first is None else first - base

    def seen(register: int) -> jax.Array:
        index = run - 1 - register
        mask = last >= index
        if first is not None:
            mask &= first <= index
        if query_ids is not None and key_ids is not None:
            mask &= key_ids[:, register : register + 1] == query_ids
        return mask

    return seen


def scaled_logits(
    products: jax.Array, register: int, scale: float, seen: Sight | None
) -> jax.Array:
    """The logits `[8, rows]` of a register, to base 2; -inf where a key is not seen."""
    rows = products[SUBLANES * register : SUBLANES * (register + 1)]
    logits = jnp.minimum(rows * (scale * LOG2_E), _LARGEST_LOGIT)
    return logits if seen is None else jnp.where(seen(register), logits, -jnp.inf)


def over_nearer_runs(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Sums of `[8, rows]` over the runs, that is sublanes, nearer than each; and over all."""
    sublane = jax.lax.broadcasted_iota(jnp.int32, x.shape, 0)
    total = x
    for distance in (1, 2, 4):
        moved = pltpu.roll(total, SUBLANES - distance, 0)
        total = total + jnp.where(sublane < SUBLANES - distance, moved, 0.0)
    nearer = jnp.where(sublane < SUBLANES - 1, pltpu.roll(total, SUBLANES - 1, 0), 0.0)
    return nearer, jnp.broadcast_to(total[:1], x.shape)


def weights(
    products: jax.Array, spent: jax.Array, scale: float, seen: Sight | None
) -> tuple[jax.Array, jax.Array]:
    """Weights of a tile, and what is spent of the stick behind it.

    Args:
      products: float32 `[keys, rows]`, of keys and queries.
      spent: float32 `[8, rows]`, minus the binary logarithm of the stick in front of the tile, in
        each sublane.
      scale: of the logits.
      seen: None if all keys are seen.

    Returns:
      float32 `[keys, rows]`; `spent` for the next tile.
    """
    product = None
    relative = []
    for register in range(products.shape[0] // SUBLANES):
        logits = scaled_logits(products, register, scale, seen)
        factor = 1.0 + jnp.exp2(logits)
        product = factor if product is None else product * factor
        # The weight within the run; the runs in front of it have still to take theirs.
        relative.append(logits - jnp.log2(product))
    assert product is not None
    nearer, total = over_nearer_runs(jnp.log2(product))
    nearer = nearer + spent
    return jnp.concatenate([jnp.exp2(x - nearer) for x in relative]), spent + total


def dot(subscripts: str, x: jax.Array, y: jax.Array) -> jax.Array:
    """Product of two matrices, accumulated in float32; float32 operands are not rounded."""
    exact = x.dtype == jnp.float32
    return jnp.einsum(
        subscripts,
        x,
        y,
        precision=jax.lax.Precision.HIGHEST if exact else jax.lax.Precision.DEFAULT,
        preferred_element_type=jnp.float32,
    )
