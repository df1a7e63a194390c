"""Stick-breaking attention written down as its definition says, on whole arrays.

The oracle of the tests: every intermediate is `[B, G, R, Sq, Sk]`, and gradients are JAX's own.
Inputs in float64 are computed in float64.

**Early exit.** With a tolerance, a query passes over the keys in front of which less of its stick
is left than the tolerance: they get the weight 0 and take nothing, and the remainder is what was
left in front of the first of them. Here a query passes over all such keys. An implementation may
pass over fewer, those from some point on (it works in blocks), never over others. So the function
that it computes is the exact one with, for each query, some of its far keys out of sight, and its
gradients are the gradients of that one.

The bounds, for one query and the keys F it passes over. Let `R < tolerance` be the stick in front
of F. The weights still to come and the remainder sum to what is left, so that F had a weight of
`R - remainder` in all:

- output: `|O' - O| <= R max_F |v|`, each element;
- remainder: `0 <= rem' - rem = R - rem <= R`.

For the gradients, the remainder is 1 minus the sum of the weights, so that with
`g_j = dO . v_j - drem` and G its largest magnitude, `dz_j = A_j g_j - beta_j sum_m A_m g_m` over
`m` from `j` on to the farthest. If `j` is kept, what its sum has lost is at most `R G`. If `j` is
in F, `dz_j' = 0` and `|dz_j| <= 2 beta_j (1 - beta_j) s_j G <= s_j G / 2`, with `s_j <= R` the
stick in front of it. Hence

- logits: `|dz_j' - dz_j| <= R G`, for each key;
- in sum over the keys, `sum_j |dz_j' - dz_j| <= R (2 + log(1 / R)) G`: of the keys kept,
  `sum beta_j <= -sum log(1 - beta_j) = log(1 / R)`, and over F, `|dz_j| <= 2 A_j G`;
- d_query (each element): that sum times `scale max |k|`;
- d_key: `scale` times the sum over the queries of `R G |q|`;
- d_value: the sum over the queries of `R |dO|`.

Both `R` and `R (2 + log(1 / R))` grow with `R` up to 1, so that the tolerance may stand for `R`.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from pallas_kernels.attention.shared.masks import Visibility


def stickbreaking_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    visibility: Visibility,
    *,
    scale: float,
    tolerance: float = 0.0,
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """Returns output `[B, Sq, H, dv]` and remainder `[B, Sq, H]` (see the public op).

    And, with a tolerance, the first key that queries reached, int32 `[B, Sq, H]`, else None.
    """
    batch, query_length, heads, _ = query.shape
    key_length, groups = key.shape[1:3]
    accumulation = jnp.promote_types(query.dtype, jnp.float32)
    grouped = query.reshape(batch, query_length, groups, heads // groups, -1)
    logits = scale * jnp.einsum(
        "bigrd,bjgd->bgrij",
        grouped,
        key,
        precision=jax.lax.Precision.HIGHEST,
        preferred_element_type=accumulation,
    )
    seen = jnp.swapaxes(visibility.seen(0, query_length, 0, key_length), 1, 2)[:, None, None]
    reached = None
    if tolerance:
        _, _, log_left = _log_sticks(jax.lax.stop_gradient(logits), seen)
        seen = seen & (log_left >= math.log(tolerance))
        reached = jnp.where(seen.any(-1), jnp.argmax(seen, axis=-1), key_length)
        reached = _by_position(reached.astype(jnp.int32))
    log_break, log_kept, log_left = _log_sticks(logits, seen)
    weights = jnp.where(seen, jnp.exp(log_break + log_left), 0.0)
    output = jnp.einsum(
        "bgrij,bjgd->bigrd",
        weights,
        value.astype(accumulation),
        precision=jax.lax.Precision.HIGHEST,
    )
    output = output.reshape(batch, query_length, heads, -1).astype(value.dtype)
    return output, _by_position(jnp.exp(log_kept[..., 0])), reached


def _by_position(rows: jax.Array) -> jax.Array:
    """`[B, G, R, Sq]` as `[B, Sq, H]`."""
    batch, groups, repeats, length = rows.shape
    return jnp.transpose(rows, (0, 3, 1, 2)).reshape(batch, length, groups * repeats)


def _log_sticks(logits: jax.Array, seen: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Logarithms, for each key: of its share, of the stick behind it and of that in front of it."""
    # A key that is not seen is given a harmless logit, so that no gradient passes through it.
    logits = jnp.where(seen, logits, 0.0)
    log_break = jnp.where(seen, jax.nn.log_sigmoid(logits), -jnp.inf)
    log_keep = jnp.where(seen, jax.nn.log_sigmoid(-logits), 0.0)
    log_kept = jax.lax.cumsum(log_keep, axis=log_keep.ndim - 1, reverse=True)
    log_left = jnp.concatenate([log_kept[..., 1:], jnp.zeros_like(log_kept[..., :1])], axis=-1)
    return log_break, log_kept, log_left
