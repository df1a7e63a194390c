"""Computation of both TPU kernels in a strip of logits: the odds, and sums over nearer keys.

A strip is 128 keys by the rows of a block, `[keys, rows]` in running order (see `layout`): 16
registers' worth of keys, `[8, rows]` each, nearest first.

The stick is kept as its logarithm: a key with logit z takes `softplus(z)` off it. Within a run the
product of `1 + exp(z)` is taken, whose factors are exact to a rounding error, and one logarithm of
the product for each run. All is to base 2, the base of the hardware's exponential and logarithm.

A weight is the odds over that product, times what is left of the stick in front of the run. Where
weights are rounded to bfloat16 anyway, the hardware's estimate of the reciprocal will do: compiled
for v5e and v5p, a division in float32 is that estimate and one step of Newton's, so it is good to
2**-12 or so; for v6e it is the estimate. In float32 weights are `2**(z - log2(product) - spent)`.
The share that a key takes in the backward pass is multiplied with differences that nearly cancel
where it is 1: there it is 1 minus what it leaves, so that the estimate's error vanishes with that.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.attention.stickbreaking.tpu.layout import RUN, STRIP, SUBLANES

LOG2_E = math.log2(math.e)
# Logits, to base 2, are bounded to this. A key with odds of 2**92 leaves nothing of the stick that
# counts in float32, and its odds can still be multiplied with those of a nearer key.
LARGEST_LOGIT = 92.0
_LARGEST_EXCESS = 2.0**126


def bounds_of_strip(
    start: jax.Array,
    last: jax.Array,
    first: jax.Array | None,
    query_ids: jax.Array | None,
    key_ids: jax.Array | None,
) -> jax.Array:
    """Returns what logits are bounded to, float32 `[128, rows]`: -inf where a key is not seen.

    Args:
      start: index of the first key of the strip.
      last: int32 `[1, rows]`, the nearest key seen.
      first: int32 `[1, rows]` or None, the farthest.
      query_ids: int32 `[1, rows]` or None, segment ids.
      key_ids: int32 `[8, 16]` or None, the nearest key of each run first.
    """
    shape = (SUBLANES, last.shape[1])
    # Index of the farthest key of the sublane's run.
    base = start + RUN * jax.lax.broadcasted_iota(jnp.int32, shape, 0)
    index = RUN - 1 - jax.lax.broadcasted_iota(jnp.int32, (RUN, *shape), 0)
    seen = (last - base)[None] >= index
    if first is not None:
        seen &= (first - base)[None] <= index
    if query_ids is not None and key_ids is not None:
        seen &= jnp.stack([key_ids[:, n : n + 1] == query_ids for n in range(RUN)])
    return jnp.where(seen, LARGEST_LOGIT, -jnp.inf).reshape(STRIP, -1)


def registers(strip: jax.Array) -> jax.Array:
    """`[128, rows]`, of keys as `layout.nearest_first` has them, to `[16, 8, rows]`."""
    pairs = strip.reshape(RUN // 2, 2, SUBLANES, -1)
    return jnp.stack([pairs[n // 2, 1 - n % 2] for n in range(RUN)])


def as_stored(strip: jax.Array, dtype: jax.typing.DTypeLike) -> jax.Array:
    """`[16, 8, rows]`, nearest keys first, to `[128, rows]` in the order of HBM and in a dtype."""
    return jnp.concatenate([strip[n] for n in reversed(range(RUN))]).astype(dtype)


def bounded_logits(products: jax.Array, scale: float, bounds: jax.Array) -> jax.Array:
    """Logits to base 2 of a strip, `[16, 8, rows]`; -inf where a key is not seen."""
    return jnp.minimum(registers(products) * (scale * LOG2_E), bounds.reshape(RUN, SUBLANES, -1))


def running(combine: Callable[[jax.Array, jax.Array], jax.Array], x: jax.Array) -> jax.Array:
    """Each register of `[16, 8, rows]` combined with all in front of it, that is nearer keys."""
    registers = [x[0]]
    for register in range(1, RUN):
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
    products: jax.Array,
    bounds: jax.Array,
    spent: jax.Array,
    scale: float,
    dtype: jax.typing.DTypeLike,
) -> tuple[jax.Array, jax.Array]:
    """Weights of a strip, and what is spent of the stick behind it.

    Args:
      products: float32 `[128, rows]`, of keys and queries; see `registers`.
      bounds: see `bounds_of_strip`.
      spent: float32 `[8, rows]`, minus the binary logarithm of the stick in front of the strip, in
        each sublane.
      scale: of the logits.
      dtype: of the weights.

    Returns:
      `[128, rows]`, in the order of HBM; `spent` for the next strip.
    """
    logits = bounded_logits(products, scale, bounds)
    _, spent, strip, _ = _broken(logits, jnp.exp2(logits), spent, dtype)
    return as_stored(strip, dtype), spent


def _broken(
    logits: jax.Array, odds: jax.Array, spent: jax.Array, dtype: jax.typing.DTypeLike
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Breaks the stick: `spent` in front of each run and behind the strip, weights, `1 + odds`."""
    one_more = 1.0 + odds
    if jnp.dtype(dtype) == jnp.float32:
        # Also thousands of keys with tiny odds, which `1 + odds` rounds, must add up to within
        # 1e-5: what is kept is the excess of the product over 1.
        taken = jnp.log2(1.0 + running(_onwards, odds))
        nearer, total = over_nearer_runs(taken[-1])
        nearer = nearer + spent
        return nearer, spent + total, jnp.exp2(logits - taken - nearer[None]), one_more
    product = running(jnp.multiply, one_more)
    nearer, total = over_nearer_runs(jnp.log2(product[-1]))
    nearer = nearer + spent
    # A product that overflowed stands for a stick that is used up: its reciprocal is 0.
    share = odds * pltpu.reciprocal(product, approx=True)
    return nearer, spent + total, share * jnp.exp2(-nearer)[None], one_more


def _onwards(excess: jax.Array, more: jax.Array) -> jax.Array:
    # Bounded, because infinity times the odds 0 of a key out of sight would be NaN.
    return jnp.minimum(excess + more * (1.0 + excess), _LARGEST_EXCESS)


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
    bounds: jax.Array,
    spent: jax.Array,
    rest: jax.Array,
    largest: jax.Array,
    scale: float,
    dtype: jax.typing.DTypeLike,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Weights of a strip and gradients of its logits.

    With `a = A (dO . V)`, `c = dO . O + drem rem` and `n_j` the sum of `a` over the keys nearer
    than `j`, the gradient is `dz_j = a_j - beta_j (c - n_j)`; `rest` is `c - n` in front of the
    strip. In front of each run it is bounded by what all keys from there on can add up to, so that
    it ends with the stick. Without that its rounding error, small as it is, would give each of
    thousands of far keys the same wrong gradient.

    Args:
      products: float32 `[128, rows]`, of keys and queries; see `registers`.
      effects: float32 `[128, rows]`, products of values and gradients of the output.
      bounds: see `bounds_of_strip`.
      spent: see `weights`.
      rest: float32 `[8, rows]`, the same in each sublane.
      largest: float32 `[8, rows]`, the largest magnitude of an effect or the remainder's gradient.
      scale: of the logits.
      dtype: of the results.

    Returns:
      weights and gradients of the logits, `[128, rows]` in the order of HBM; `spent` and `rest` for
      the next strip.
    """
    logits = bounded_logits(products, scale, bounds)
    odds = jnp.exp2(logits)
    # Weights are rounded as in the forward pass, whose output the rest is made of: a difference
    # would be passed on to all farther keys.
    nearer, behind, strip, one_more = _broken(logits, odds, spent, dtype)
    stored = as_stored(strip, dtype)
    rounded = stored.astype(jnp.float32).reshape(strip.shape)
    a = jnp.stack([rounded[n] for n in reversed(range(RUN))]) * registers(effects)
    left = _reciprocal(one_more, 2 if jnp.dtype(dtype) == jnp.float32 else 0)
    breaks = jnp.where(odds > 1.0, 1.0 - left, odds * left)
    # What waits for the sums of nearer runs is two arrays: the part of the gradient that the run
    # itself makes, and `breaks`.
    passed, own = a[0], [a[0]]
    for register in range(1, RUN):
        own.append(a[register] + breaks[register] * passed)
        passed = passed + a[register]
    passed_nearer, passed_total = over_nearer_runs(passed)
    limit = largest * jnp.exp2(-nearer)
    in_front = jnp.clip(rest - passed_nearer, -limit, limit)
    d_logits = jnp.stack(own) - breaks * in_front[None]
    return (
        stored,
        as_stored(d_logits, dtype),
        behind,
        rest - passed_total,
    )


def _reciprocal(x: jax.Array, steps: int) -> jax.Array:
    """1 / x for finite x from 1 on: the hardware's estimate, and steps of Newton's."""
    estimate = pltpu.reciprocal(x, approx=True)
    for _ in range(steps):
        estimate = estimate * (2.0 - x * estimate)
    return estimate
