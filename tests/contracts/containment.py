"""Contract of attention with inputs that are not finite: they reach what sees them, and no more.

What must be lost follows from looking at every pair of query and key; everything else must be as it
is without them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.softmax_attention import softmax_attention as softmax_output
from pallas_kernels.softmax_attention import softmax_attention_and_log_sum
from pallas_kernels.stickbreaking_attention import stickbreaking_attention

BATCH, LENGTH, HEADS, GROUPS, WIDTH = 2, 40, 4, 2, 8
REPEATS = HEADS // GROUPS
# Positions of a row: documents, of which one comes twice, and padding.
DOCUMENTS = np.repeat([3, 1, 2, 1], [12, 10, 10, 8])
HIDDEN = np.isin(np.arange(LENGTH), [0, 5, 18, 39])
QUERY, KEY, VALUE, D_OUTPUT, D_REST = range(5)
NAMES = ("output", "rest", "d_query", "d_key", "d_value")

Arrays = list[np.ndarray]
Poison = tuple[int, Any, float]

# What is put where, [batch, position, head].
POISONS: dict[str, list[Poison]] = {
    "padding": [(KEY, np.s_[:, HIDDEN], np.nan), (VALUE, np.s_[:, HIDDEN], -np.inf)],
    "too large to multiply": [
        (KEY, np.s_[:, HIDDEN], 3e38),
        (VALUE, np.s_[:, HIDDEN], -3e38),
    ],
    "a key of one head": [(KEY, np.s_[0, 15, 1, 3], np.nan)],
    "an infinite key": [(KEY, np.s_[1, 25, 0], np.inf)],
    "a value": [(VALUE, np.s_[0, 13, 0, 2], np.nan)],
    "an infinite value at the end": [(VALUE, np.s_[1, LENGTH - 2, 1], -np.inf)],
    "a query": [(QUERY, np.s_[0, 20, 3, 1], np.nan), (QUERY, np.s_[1, 0], np.inf)],
    "a padded token": [(n, np.s_[0, 18], np.nan) for n in (QUERY, KEY, VALUE)],
    "a whole document": [(n, np.s_[1, 12:22], np.nan) for n in (QUERY, KEY, VALUE)],
    "a gradient of the output": [(D_OUTPUT, np.s_[0, 21, 2, 0], np.nan)],
    "a gradient of the rest": [(D_REST, np.s_[1, 28, 0], np.inf)],
}


def _stickbreaking(implementation: str, *arrays: Any, **options: Any) -> Any:
    return tuple(stickbreaking_attention(*arrays, implementation=implementation, **options))


def _softmax(implementation: str, *arrays: Any, **options: Any) -> Any:
    return tuple(softmax_attention_and_log_sum(*arrays, implementation=implementation, **options))


def _softmax_alone(implementation: str, *arrays: Any, **options: Any) -> Any:
    output = softmax_output(*arrays, implementation=implementation, **options)
    return output, jnp.zeros(output.shape[:3], jnp.float32)


OPERATIONS: dict[str, Callable[..., Any]] = {
    "stickbreaking": _stickbreaking,
    "softmax": _softmax,
    "softmax alone": _softmax_alone,
}


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _run(operation: str, implementation: str, static: Any, rules: Any, arrays: Any) -> Any:
    *inputs, d_output, d_rest = arrays
    call = functools.partial(OPERATIONS[operation], implementation, **dict(static), **rules)
    results, pull = jax.vjp(call, *inputs)
    rounded = d_output.astype(results[0].dtype), d_rest.astype(results[1].dtype)
    return *results, *pull(rounded)


def assert_contained(
    operation: str, implementation: str, name: str, *, rules: str = "", dtype: Any = np.float32
) -> None:
    """Asserts that what a poison spoils is NaN, and the rest as if it were not there.

    Args:
      operation: a key of `OPERATIONS`.
      implementation: of the operation.
      name: a key of `POISONS`.
      rules: "segments", "window" or "" (causal alone); padding is always hidden.
      dtype: of the inputs.
    """
    traced: dict[str, Any] = {"key_mask": np.repeat(~HIDDEN[None], BATCH, 0)}
    static: dict[str, Any] = {}
    if rules == "segments":
        ids = np.repeat(DOCUMENTS[None], BATCH, 0)
        traced |= {"query_segment_ids": ids, "key_segment_ids": ids}
    elif rules == "window":
        static = {"window": 9}
    run = functools.partial(_run, operation, implementation, tuple(static.items()), traced)

    random = np.random.default_rng(0)
    shapes = [(BATCH, LENGTH, n, WIDTH) for n in (HEADS, GROUPS, GROUPS, HEADS)]
    clean = [random.standard_normal(s).astype(dtype) for s in (*shapes, shapes[0][:3])]
    poisoned = [x.copy() for x in clean]
    for n, where, number in POISONS[name]:
        poisoned[n][where] = number

    nearest = 1 if operation == "stickbreaking" else 0
    seen = _seen(nearest, traced.get("query_segment_ids"), static.get("window"))  # [B, 1, Sq, Sk]
    spoilt = [~np.isfinite(x.astype(np.float64)).all(-1) for x in poisoned[:4]]
    query, d_output = (np.swapaxes(spoilt[n], 1, 2) for n in (QUERY, D_OUTPUT))
    key, value = (np.repeat(np.swapaxes(spoilt[n], 1, 2), REPEATS, 1) for n in (KEY, VALUE))
    by_key = (seen & key[:, :, None]).any(-1) | (query & seen.any(-1))  # [B, H, Sq]
    lost = by_key | (seen & value[:, :, None]).any(-1)
    # No cotangent is 0 here; of softmax attention alone only the output has one.
    bad = lost | d_output | ~np.isfinite(np.swapaxes(poisoned[D_REST], 1, 2).astype(np.float64))
    if operation == "softmax alone":
        bad, by_key = lost | d_output, np.zeros_like(by_key)
    of_keys = (seen & bad[..., None]).any(2).reshape(BATCH, GROUPS, REPEATS, -1).any(2)

    rows = np.swapaxes(bad, 1, 2)
    quiet = [*clean[:3], clean[3] * ~rows[..., None], clean[4] * ~rows]
    expected = [np.asarray(x, np.float64) for x in (*run(clean)[:2], *run(quiet)[2:])]
    for result, where in zip(expected, (lost, by_key, bad, of_keys, of_keys), strict=True):
        result[np.swapaxes(where, 1, 2)] = np.nan
    for label, found, exact in zip(NAMES, run(poisoned), expected, strict=True):
        np.testing.assert_array_equal(
            np.asarray(found, np.float64), exact, err_msg=f"{label}: {name}"
        )


def assert_early_exit_limits_what_is_lost(
    implementation: str, *, far: int, dtype: Any = np.float32
) -> None:
    """Asserts that a key behind an early exit is not seen, and one in front of it is.

    Each key takes half of the stick, so that it is used up within 20 keys; keys before `far` are of
    another block than the last ones, and passed over.
    """
    length = 2 * far
    query, key = jnp.zeros((1, 8, 2, 8), dtype), jnp.ones((1, length, 2, 8), dtype)

    @jax.jit
    def run(key: Any, value: Any) -> Any:
        def call(*arrays: Any) -> Any:
            return stickbreaking_attention(*arrays, tolerance=1e-3, implementation=implementation)

        results, pull = jax.vjp(call, query, key, value)
        return *results, *pull(results)

    clean = [np.asarray(x, np.float64) for x in run(key, key)]
    assert all(np.isfinite(x).all() for x in clean)
    # Of one head behind the exit, of the other in front of it.
    spoilt = key.at[0, : far // 2, 0].set(jnp.nan).at[0, length - 8, 1].set(jnp.nan)
    for arrays, lost in (((spoilt, key), (0, 1, 2, 3, 4)), ((key, spoilt), (0, 2, 3, 4))):
        for n, (found, expected) in enumerate(zip(run(*arrays), clean, strict=True)):
            found = np.asarray(found, np.float64)
            np.testing.assert_array_equal(found[:, :, 0], expected[:, :, 0], NAMES[n])
            assert np.isnan(found[0, -1, 1] if n < 3 else found[0, -8, 1]).any() == (n in lost)


def _seen(nearest: int, ids: np.ndarray | None, window: int | None) -> np.ndarray:
    distance = np.arange(LENGTH)[:, None] - np.arange(LENGTH)
    seen = (distance >= nearest) & ~HIDDEN
    if window is not None:
        seen = seen & (distance < window)
    seen = np.repeat(seen[None, None], BATCH, 0)
    return seen if ids is None else seen & (ids[:, None, :, None] == ids[:, None, None])
