"""Products and sums over the nearer keys of a tile, and from tile to tile, exact over long rows.

Of a product of many factors `1 + o` the *excess* over 1 is kept, `e` with `prod (1 + o) = 1 + e`;
two are combined as `e + f + e f`. The product itself would lose the low bits of small odds, key for
key and always the same way: over 65,536 keys that take 3e-7 each it was off by 3e-3.

In a tile, `[B, G, K, Q]`, later keys are nearer. Sums over tiles keep what their rounding lost.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

LARGEST_LOGIT = 44.0
"""Logits are bounded to this. A key with odds of exp(44) leaves 8e-20 of the stick, nothing in
float32. And a product overflows (at exp(88.7)) only where as little was left in front of the last
key, so that no weight that counts is lost. The odds of two keys never do: see `_combine_four`."""

# What excesses are bounded to, since infinity times the odds 0 of a key out of sight would be NaN.
_LARGEST_EXCESS = 2.0**126
# Terms of a sum that need care. It costs nothing beside a tile where a row adds one number.
_MANY = 64
# Keys whose running products are taken together, in two passes of radix four.
_SPAN = 16

_Combine = Callable[[jax.Array, jax.Array], jax.Array]


class Sum(NamedTuple):
    """A sum over the tiles of a walk, and what rounding lost of it (Kahan's summation).

    Hundreds of terms of one size are rounded alike: 512 of them lost 3e-6 of their sum.

    Attributes:
      total: the sum, of any shape.
      surplus: by how much it is too large; None of a sum of few terms, which is as it comes.
    """

    total: jax.Array
    surplus: jax.Array | None

    @classmethod
    def of(cls, start: jax.Array, *, terms: int = _MANY) -> Sum:
        """A sum of `start` and so many terms to come."""
        return cls(start, jnp.zeros_like(start) if terms >= _MANY else None)

    def plus(self, term: jax.Array) -> Sum:
        """The sum with one more term."""
        if self.surplus is None:
            return Sum(self.total + term, None)
        term = term - self.surplus
        total = self.total + term
        return Sum(total, (total - self.total) - term)

    def combined(self, excess: jax.Array) -> Sum:
        """The excess of a product that this sum is, with further factors."""
        term = jnp.minimum(excess * (1 + self.total), _LARGEST_EXCESS)
        total, surplus = self.plus(term)
        used_up = total >= _LARGEST_EXCESS
        return Sum(
            jnp.where(used_up, _LARGEST_EXCESS, total),
            None if surplus is None else jnp.where(used_up, 0, surplus),
        )


def combine(one: jax.Array, other: jax.Array) -> jax.Array:
    """The excess of a product over 1 from those of two factors: `(1 + e) (1 + f) - 1`."""
    return jnp.minimum(one + other * (1 + one), _LARGEST_EXCESS)


def products(odds: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Products of `1 + o` over each key of a tile and the nearer, that is later, ones: two parts.

    Returns the products `[B, G, spans, span, Q]` of each key and those after it in its span, which
    are of few factors; and the excess `[B, G, spans + 1, Q]` of each span and those after it, and 0
    at the end.
    """
    if odds.shape[2] % _SPAN:
        within = _scan(odds, combine)
        return 1 + within[:, :, None], _end_with_zero(within[:, :, :1])
    odds = _in_spans(odds)
    fours = jax.lax.optimization_barrier(1 + _combine_four(*_shifts(odds, 1)))
    within = functools.reduce(jnp.multiply, _shifts(fours, 4, 1))
    quarters = jax.lax.optimization_barrier(_combine_four(*(odds[:, :, :, n::4] for n in range(4))))
    quarters = jnp.minimum(quarters, _LARGEST_EXCESS)
    spans = functools.reduce(combine, [quarters[:, :, :, n] for n in range(_SPAN // 4)])
    return within, _end_with_zero(_scan(spans, combine))


def sums(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The same of sums: within a span, and over each span and those after it."""
    if x.shape[2] % _SPAN:
        within = _scan(x, jnp.add)
        return within[:, :, None], _end_with_zero(within[:, :, :1])
    fours = jax.lax.optimization_barrier(functools.reduce(jnp.add, _shifts(_in_spans(x), 1)))
    within = functools.reduce(jnp.add, _shifts(fours, 4))
    spans = functools.reduce(jnp.add, [fours[:, :, :, n] for n in range(0, _SPAN, 4)])
    return within, _end_with_zero(_scan(spans, jnp.add))


def _combine_four(*odds: jax.Array) -> jax.Array:
    """The excess for the odds of four keys; infinite where it overflows, and never NaN."""
    first, second, third, fourth = odds
    one, other = first + second * (1 + first), third + fourth * (1 + third)
    return one + other * (1 + one)


def _in_spans(x: jax.Array) -> jax.Array:
    """`[B, G, K, Q]` as `[B, G, spans, span, Q]`."""
    batch, groups, size, queries = x.shape
    return x.reshape(batch, groups, size // _SPAN, _SPAN, queries)


def _scan(x: jax.Array, combine: _Combine) -> jax.Array:
    """Running combination from the end of the second last axis on."""
    x = jax.lax.optimization_barrier(x)
    stride = 1
    while stride < x.shape[-2]:
        x = jax.lax.optimization_barrier(functools.reduce(combine, _shifts(x, stride)))
        stride *= 4
    return x


def _shifts(x: jax.Array, stride: int, neutral: float = 0) -> list[jax.Array]:
    """What a pass of radix four combines: `x`, and each element at one, two and three strides on.

    Measured on CPU, a pass costs little more than a copy, 0.1 ns an element on two cores, where a
    triangular matrix product takes 0.4 and `cumsum` 2 to 3. What several readers share is put
    behind an `optimization_barrier`: else XLA stores the shifted copies in place of their
    combination.
    """
    return [x, *(_shift(x, n * stride, neutral) for n in range(1, 4) if n * stride < x.shape[-2])]


def _shift(x: jax.Array, count: int, neutral: float) -> jax.Array:
    """Moves `x` by `count` towards the beginning of its second last axis."""
    x = jax.lax.slice_in_dim(x, count, x.shape[-2], axis=x.ndim - 2)
    padding = [(0, 0, 0)] * x.ndim
    padding[-2] = (0, count, 0)
    return jax.lax.pad(x, jnp.asarray(neutral, x.dtype), padding)


def _end_with_zero(x: jax.Array) -> jax.Array:
    """`[B, G, n, Q]` as `[B, G, n + 1, Q]`."""
    end = jnp.zeros_like(x[:, :, :1])
    return jax.lax.optimization_barrier(jnp.concatenate([x, end], axis=2))
