"""Cases of softmax attention, and how an implementation is called and compared at them."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.softmax_attention import softmax_attention
from tests.contracts import exact_attention

NAMES = ("output", "d_query", "d_key", "d_value")


@functools.partial(jax.jit, static_argnames=("static", "implementation"))
def _run(arrays, d_output, options, static, implementation):
    def call(query, key, value):
        return softmax_attention(
            query, key, value, **options, **dict(static), implementation=implementation
        )

    output, pull = jax.vjp(call, *arrays)
    return output, *pull(d_output)


def call(implementation: str, arrays, options: dict[str, Any], dtype) -> list[np.ndarray]:
    """Output and gradients as float64, computed in `dtype`."""
    static = tuple((k, v) for k, v in options.items() if not isinstance(v, np.ndarray))
    traced = {k: v for k, v in options.items() if isinstance(v, np.ndarray)}
    *arrays, d_output = (jnp.asarray(a, dtype) for a in arrays)
    results = _run(tuple(arrays), d_output, traced, static, implementation)
    return [np.asarray(result, np.float64) for result in results]


def arrays_of(*shape: int, dtype: Any = np.float32) -> list[np.ndarray]:
    """Query, key, value and the gradient of the output, in values that `dtype` has."""
    batch, queries, keys, heads, groups, width, value_width = shape
    random = np.random.default_rng(0)
    shapes = (
        (batch, queries, heads, width),
        (batch, keys, groups, width),
        (batch, keys, groups, value_width),
        (batch, queries, heads, value_width),
    )
    return [np.asarray(random.standard_normal(s).astype(dtype), np.float64) for s in shapes]


def _segments(batch, queries, keys) -> dict[str, np.ndarray]:
    ids = np.sort(np.random.default_rng(1).integers(0, 4, (batch, keys)), axis=1)
    return {"query_segment_ids": ids[:, -queries:], "key_segment_ids": ids}


def _padding(batch, keys) -> dict[str, np.ndarray]:
    return {"key_mask": np.random.default_rng(2).random((batch, keys)) < 0.7}


ODD, GROUPED, SMALL = (1, 500, 500, 7, 7, 20, 24), (2, 150, 150, 4, 2, 16, 16), (2, 30, 150, 4, 2)
CASES: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
    "odd_sizes": (ODD, {}),
    "grouped": (GROUPED, {"scale": 1.3}),
    "not_causal": (GROUPED, {"causal": False}),
    "segments": (GROUPED, _segments(2, 150, 150)),
    "padding": (GROUPED, _padding(2, 150)),
    "all_masks": (
        GROUPED,
        _segments(2, 150, 150) | _padding(2, 150) | {"window": 20, "scale": 0.9},
    ),
    "window": (GROUPED, {"window": 70}),
    "fewer_queries": ((*SMALL, 8, 8), _segments(2, 30, 150)),
    "offset": ((*SMALL, 8, 8), {"query_offset": 61, "window": 50}),
    "some_see_nothing": ((*SMALL, 8, 8), {"query_offset": -20}),
    "one_query": ((2, 1, 150, 4, 2, 8, 8), {"query_offset": 100}),
    "one_of_each": ((1, 1, 1, 1, 1, 3, 2), {}),
}


def assert_close(actual, expected, tolerance: float) -> None:
    """Finite, and near in norm."""
    for name, mine, exact in zip(NAMES, actual, expected, strict=True):
        assert np.isfinite(mine).all(), name
        assert np.linalg.norm(mine - exact) <= tolerance * np.linalg.norm(exact), name


@functools.cache
def exact(name: str, dtype: Any) -> list[np.ndarray]:
    """Results of the definition for a case in float64, on values of a dtype."""
    shape, options = CASES[name]
    return exact_attention.softmax(arrays_of(*shape, dtype=dtype), options)
