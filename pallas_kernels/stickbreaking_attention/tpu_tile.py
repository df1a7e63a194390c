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
_LARGEST_EXCESS = 2.0**126


def sight(
    start: jax.Array,
    run: int,
    last: jax.Array,
    first: jax.Array | None,
    query_ids: jax.Array | None,
    key_ids: jax.Array | None,
) -> jax.Array:
    """Returns which keys of a block the rows see, bool `[run, 8, rows]`.

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
    index = run - 1 - jax.lax.broadcasted_iota(jnp.int32, (run, *shape), 0)
    seen = (last - base)[None] >= index
    if first is not None:
        seen &= (first - base)[None] <= index
    if query_ids is not None and key_ids is not None:
        seen &= jnp.stack([key_ids[:, n : n + 1] == query_ids for n in range(run)])
    return seen


def bounded_logits(products: jax.Array, scale: float, seen: jax.Array | None) -> jax.Array:
    """Logits to base 2 of a tile, `[run, 8, rows]`; -inf where a key is not seen."""
    products = products.reshape(-1, SUBLANES, products.shape[1])
    logits = jnp.minimum(products * (scale * LOG2_E), _LARGEST_LOGIT)
    return logits if seen is None else jnp.where(seen, logits, -jnp.inf)


def taken_in_runs(odds: jax.Array, exact: bool) -> jax.Array:
    """Binary logarithms of the products of `1 + odds` over each key and the nearer ones of its run.

    Args:
      odds: float32 `[run, 8, rows]`.
      exact: whether also thousands of keys with tiny odds, which `1 + odds` rounds, must add up to
        within 1e-5: the excess of the product over 1 is then what is kept.
    """
    if not exact:
        return jnp.log2(running(jnp.multiply, 1.0 + odds))

    def onwards(excess: jax.Array, more: jax.Array) -> jax.Array:
        # Bounded, because infinity times the odds 0 of a key out of sight would be NaN.
        return jnp.minimum(excess + more * (1.0 + excess), _LARGEST_EXCESS)

    return jnp.log2(1.0 + running(onwards, odds))


def running(combine: Callable[[jax.Array, jax.Array], jax.Array], x: jax.Array) -> jax.Array:
    """Each register of `[run, 8, rows]` combined with all in front of it, that is nearer keys."""
    registers = [x[0]]
    for register in range(1, x.shape[0]):
        registers.append(combine(registers[-1], x[register]))
    return jnp.stack(registers)


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
    products: jax.Array, spent: jax.Array, scale: float, seen: jax.Array | None, exact: bool
) -> tuple[jax.Array, jax.Array]:
    """Weights of a tile, and what is spent of the stick behind it.

    Args:
      products: float32 `[keys, rows]`, of keys and queries.
      spent: float32 `[8, rows]`, minus the binary logarithm of the stick in front of the tile, in
        each sublane.
      scale: of the logits.
      seen: None if all keys are seen.
      exact: see `taken_in_runs`.

    Returns:
      float32 `[keys, rows]`; `spent` for the next tile.
    """
    logits = bounded_logits(products, scale, seen)
    # The weight within the run is the odds over this; the runs in front have still to take theirs.
    taken = taken_in_runs(jnp.exp2(logits), exact)
    nearer, total = over_nearer_runs(taken[-1])
    tile = jnp.exp2(logits - taken - (nearer + spent)[None])
    return tile.reshape(products.shape), spent + total


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


def gradients(
    products: jax.Array,
    effects: jax.Array,
    spent: jax.Array,
    rest: jax.Array,
    bound: jax.Array,
    scale: float,
    seen: jax.Array | None,
    dtype: jax.typing.DTypeLike,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Weights of a tile and gradients of its logits.

    With `a = A (dO . V)`, `c = dO . O + drem rem` and `n_j` the sum of `a` over the keys nearer
    than `j`, the gradient is `dz_j = a_j - beta_j (c - n_j)`; `rest` is `c - n` in front of the
    tile. In front of each run it is bounded by what all keys from there on can add up to, so that
    it ends with the stick. Without that its rounding error, small as it is, would give each of
    thousands of far keys the same wrong gradient.

    Args:
      products: float32 `[keys, rows]`, of keys and queries.
      effects: float32 `[keys, rows]`, products of values and gradients of the output.
      spent: see `weights`.
      rest: float32 `[8, rows]`, the same in each sublane.
      bound: float32 `[1, rows]`, the largest magnitude of an effect or the remainder's gradient.
      scale: of the logits.
      seen: None if all keys are seen.
      dtype: of the results.

    Returns:
      weights and gradients of the logits, `[keys, rows]`; `spent` and `rest` for the next tile.
    """
    logits = bounded_logits(products, scale, seen)
    odds = jnp.exp2(logits)
    exact = jnp.dtype(dtype) == jnp.float32
    taken = taken_in_runs(odds, exact)
    nearer, total = over_nearer_runs(taken[-1])
    nearer = nearer + spent
    breaks = odds * _reciprocal(1.0 + odds, 2 if exact else 1)
    # Rounded as in the forward pass, whose output the rest is made of: a difference would be passed
    # on to all farther keys.
    tile = jnp.exp2(logits - taken - nearer[None]).astype(dtype)
    a = tile.astype(jnp.float32) * effects.reshape(tile.shape)
    passed = running(jnp.add, a)
    passed_nearer, passed_total = over_nearer_runs(passed[-1])
    limit = bound * jnp.exp2(-nearer)
    in_front = jnp.clip(rest - passed_nearer, -limit, limit)
    d_logits = a - breaks * (in_front[None] - (passed - a))
    return (
        tile.reshape(products.shape),
        d_logits.astype(dtype).reshape(products.shape),
        spent + total,
        rest - passed_total,
    )


def _reciprocal(x: jax.Array, steps: int) -> jax.Array:
    """1 / x for finite x from 1 on: an estimate, good to 2**-8 at least, and steps of Newton's."""
    estimate = pltpu.reciprocal(x, approx=True)
    for _ in range(steps):
        estimate = estimate * (2.0 - x * estimate)
    return estimate
