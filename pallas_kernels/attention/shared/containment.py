"""Containment of NaN and infinity: they reach what sees them, and nothing else.

A matrix product mixes what a mask takes apart afterwards: 0 times NaN is NaN. Rather than guard
every tile, implementations are given finite inputs, with 0 in place of what is not, and rows of
queries that are *lost* get NaN in their results:

- a row that sees a key or a value that is not finite, or is itself not finite and sees any key;
- in the backward pass, a row whose results or cotangents are not finite: the gradients of its query
  and of all keys and values that it sees are NaN. A lost row with a cotangent of 0, which a loss
  leaves out, passes nothing on.

So padding, the future, other documents and other heads stay clean, forward and backward.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from pallas_kernels.attention.shared.masks import Visibility
from pallas_kernels.attention.shared.sight import keys_seen_by, queries_that_see
from pallas_kernels.compile_report.hlo import RARELY

Results = tuple[jax.Array, ...]

# Attention on finite arrays: from query, key, value and visibility to results `[B, Sq, H, ...]`, of
# which the first alone depends on the values, and to the first key that each row reached, int32
# `[B, Sq, H]`, or None: all in sight.
Attend = Callable[..., tuple[Results, jax.Array | None]]


def contained(
    attend: Attend,
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    visibility: Visibility,
    *,
    one_query_is: bool = False,
    whole: bool = False,
    name: str | None = None,
) -> Results:
    """Runs attention on finite inputs, and gives NaN to the rows that are lost.

    Args:
      attend: attention; it closes over no arrays.
      query: `[B, Sq, H, d]`.
      key: `[B, Sk, G, d]`.
      value: `[B, Sk, G, dv]`.
      visibility: which keys a query sees.
      one_query_is: whether `attend` itself contains what a single query sees, forward.
      whole: whether all heads lie on one device. Then heads are looked at as further rows, which
        fill a TPU's registers where the heads are few: two heads of width 1,024 took a tenth of the
        time (v5p, by compiled schedules).
      name: of what the backward pass needs, for policies of rematerialisation; None: none.
    """
    run = _contained_once if one_query_is and query.shape[1] == 1 else _contained
    return run(attend, whole, name, query, key, value, visibility)


def _contained(
    attend: Attend,
    whole: bool,
    name: str | None,
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    visibility: Visibility,
) -> Results:
    arrays, spoilt = zip(
        _entered(whole, query, None),
        _entered(whole, key, visibility.key_mask),
        _entered(whole, value, visibility.key_mask),
        strict=True,
    )
    results, reached = attend(*arrays, visibility)
    found = _lost(whole, query, key, value, visibility, reached)
    by_key, by_value = found if name is None else checkpoint_name(found, name)
    lost = (by_key | by_value, *(by_key for _ in results[1:]))
    return _marked(whole, key.shape[1:3], results, spoilt, lost, visibility, reached)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _contained_once(
    attend: Attend,
    whole: bool,
    name: str | None,
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    visibility: Visibility,
) -> Results:
    """A decoding step: to look at all keys beforehand would take longer than attention to them."""
    del whole, name
    (output, *rest), _ = attend(query, key, value, visibility)
    lost = jnp.any(jnp.isnan(output), axis=-1, keepdims=True)
    return jnp.where(lost, jnp.nan, output).astype(output.dtype), *rest


def _contained_once_forward(
    attend: Attend, whole: bool, name: str | None, *arguments: Any
) -> tuple[Results, Callable[[Results], tuple[jax.Array, ...]]]:
    *arrays, visibility = arguments

    def run(query: jax.Array, key: jax.Array, value: jax.Array) -> Results:
        return _contained(attend, whole, name, query, key, value, visibility)

    results, pull = jax.vjp(run, *arrays)
    return results, pull


def _contained_once_backward(
    attend: Attend,
    whole: bool,
    name: str | None,
    pull: Callable[[Results], tuple[jax.Array, ...]],
    cotangents: Results,
) -> tuple[Any, ...]:
    del attend, whole, name
    return *pull(cotangents), None


_contained_once.defvjp(_contained_once_forward, _contained_once_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _entered(whole: bool, x: jax.Array, mask: jax.Array | None) -> tuple[jax.Array, jax.Array]:
    """`x` `[B, S, ..., d]` with 0 for what is not finite, or masked, and zeros `[B, S, ...]`.

    The gradient of a vector is NaN where that of its zero, float32, is not 0. It passes where `x`
    was replaced: what it must not be, `_marked` says.
    """
    rows = _rows(whole, x)
    keep = jnp.isfinite(rows)
    if mask is not None:  # What is finite may still be so large that a product with it is not.
        of_heads = jnp.broadcast_to(mask[:, :, None], x.shape[:3])
        keep &= _rows(whole, of_heads)[..., None]
    return jnp.where(keep, rows, 0).reshape(x.shape), jnp.zeros(x.shape[:-1], jnp.float32)


def _entered_backward(
    whole: bool, _: None, cotangents: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, None]:
    d_x, spoilt = (_rows(whole, x) for x in cotangents)
    d_x = jnp.where(spoilt[..., None] != 0, jnp.nan, d_x).astype(d_x.dtype)
    return d_x.reshape(cotangents[0].shape), None


_entered.defvjp(lambda whole, x, mask: (_entered(whole, x, mask), None), _entered_backward)


def _lost(
    whole: bool,
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    visibility: Visibility,
    reached: jax.Array | None,
) -> tuple[jax.Array, jax.Array]:
    """Rows, bool `[B, Sq, H]`, that queries and keys spoil, and those that values spoil."""
    repeats = query.shape[2] // key.shape[2]

    def seen(marks: jax.Array, first: jax.Array | None) -> jax.Array:
        return queries_that_see(marks, visibility, query.shape[1], first)

    def find() -> tuple[jax.Array, jax.Array]:
        lost_query, lost_key, lost_value = (
            _any_along(~jnp.isfinite(_rows(whole, x)), x.dtype).reshape(x.shape[:-1])
            for x in (query, key, value)
        )
        # One after the other: heads that lie on several devices stay there.
        by_key, by_value = (
            seen(jnp.repeat(marks, repeats, axis=2), reached) for marks in (lost_key, lost_value)
        )
        see_any = seen(jnp.ones((*key.shape[:2], 1), bool), None)
        return by_key | (lost_query & see_any), by_value

    none = jnp.zeros(query.shape[:3], bool)
    return _if_any((query, key, value), find, (none, none), visibility)


def _if_any[T](
    arrays: tuple[jax.Array, ...], find: Callable[[], T], nothing: T, visibility: Visibility
) -> T:
    """What `find` finds. Where that takes long, only if the sum of an array is not finite."""
    if visibility.key_segment_ids is None:
        return find()
    # A sum of finite values may overflow: then there is nothing to be found.
    sums = [jnp.sum(x, dtype=jnp.promote_types(x.dtype, jnp.float32)) for x in arrays]
    finite = functools.reduce(jnp.logical_and, map(jnp.isfinite, sums))

    def rarely() -> T:
        with jax.named_scope(RARELY):
            return find()

    found: T = jax.lax.cond(finite, lambda: nothing, rarely)
    return found


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _marked(
    whole: bool,
    keys: tuple[int, int],
    results: Results,
    spoilt: Results,
    lost: Results,
    visibility: Visibility,
    reached: jax.Array | None,
) -> Results:
    """Results with NaN in lost rows, bool `[B, Sq, H]` for each of them.

    `spoilt` are the zeros of query, key and value; there are `keys` = (Sk, G) keys.
    """
    del keys, spoilt, visibility, reached
    return tuple(
        _replaced(whole, marks, x, jnp.nan) for x, marks in zip(results, lost, strict=True)
    )


def _replaced(whole: bool, marks: jax.Array, x: jax.Array, value: float) -> jax.Array:
    """`x` `[B, Sq, H, ...]` with a value in marked rows."""
    rows = _rows(whole, x)
    replaced = jnp.where(_beside(_rows(whole, marks), rows), value, rows)
    return replaced.astype(x.dtype).reshape(x.shape)


def _marked_forward(
    whole: bool,
    keys: tuple[int, int],
    results: Results,
    spoilt: Results,
    lost: Results,
    visibility: Visibility,
    reached: jax.Array | None,
) -> tuple[Results, Any]:
    marked = _marked(whole, keys, results, spoilt, lost, visibility, reached)
    return marked, (lost, visibility, reached)


def _marked_backward(
    whole: bool, keys: tuple[int, int], residuals: Any, cotangents: Results
) -> tuple[Results, Results, None, None, None]:
    lost, visibility, reached = residuals

    def find() -> tuple[jax.Array, jax.Array]:
        bad = jnp.zeros_like(lost[0])
        for cotangent, marks in zip(cotangents, lost, strict=True):
            x = _rows(whole, cotangent)
            wrong = ~jnp.isfinite(x) | (_beside(_rows(whole, marks), x) & (x != 0))
            wrong = wrong if cotangent.ndim == bad.ndim else _any_along(wrong, x.dtype)
            bad |= wrong.reshape(bad.shape)
        seen = keys_seen_by(bad, visibility, keys[0], reached)
        return bad, jnp.any(seen.reshape(*seen.shape[:2], keys[1], -1), axis=3)

    nothing = jnp.zeros_like(lost[0]), jnp.zeros((lost[0].shape[0], *keys), bool)
    # Rows that are lost count as what is not finite.
    marked = jnp.where(functools.reduce(jnp.logical_or, lost), jnp.nan, 0.0)
    bad, seen = _if_any((*cotangents, marked), find, nothing, visibility)
    spoilt = tuple(x.astype(jnp.float32) for x in (bad, seen, seen))
    passed = tuple(_replaced(whole, bad, x, 0.0) for x in cotangents)
    return passed, spoilt, None, None, None


_marked.defvjp(_marked_forward, _marked_backward)


def _any_along(marks: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """`jnp.any(marks, axis=-1)`, as a product.

    Before a reduction, XLA copies arrays of several heads into another layout on TPUs.
    """
    numbers = jnp.where(marks, jnp.nan, 0).astype(dtype)
    return jnp.isnan(numbers @ jnp.ones(marks.shape[-1:], dtype))


def _rows(whole: bool, x: jax.Array) -> jax.Array:
    """`x` `[B, S, H, ...]`, as `[B, S H, ...]` if all heads lie on one device."""
    return x.reshape(x.shape[0], x.shape[1] * x.shape[2], *x.shape[3:]) if whole else x


def _beside(marks: jax.Array, x: jax.Array) -> jax.Array:
    """Marks of rows with as many axes as `x`."""
    return marks.reshape(marks.shape + (1,) * (x.ndim - marks.ndim))
