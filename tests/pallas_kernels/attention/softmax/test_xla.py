from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from modbrick.errors import InputError
from pallas_kernels.attention.softmax.xla import softmax_attention

NAMES = ("output", "d_query", "d_key", "d_value")


@functools.partial(jax.jit, static_argnames=("static", "implementation"))
def _run(arrays, d_output, options, static, implementation):
    def call(query, key, value):
        return softmax_attention(
            query, key, value, **options, **dict(static), implementation=implementation
        )

    output, pull = jax.vjp(call, *arrays)
    return output, *pull(d_output)


def _call(implementation: str, arrays, options: dict[str, Any], dtype) -> list[np.ndarray]:
    """Output and gradients as float64, computed in `dtype`."""
    static = tuple((k, v) for k, v in options.items() if not isinstance(v, np.ndarray))
    traced = {k: v for k, v in options.items() if isinstance(v, np.ndarray)}
    *arrays, d_output = (jnp.asarray(a, dtype) for a in arrays)
    results = _run(tuple(arrays), d_output, traced, static, implementation)
    return [np.asarray(result, np.float64) for result in results]


def _arrays(*shape: int, dtype: Any = np.float32) -> list[np.ndarray]:
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
    "all_masks": (GROUPED, _segments(2, 150, 150) | _padding(2, 150) | {"window": 20}),
    "window": (GROUPED, {"window": 70}),
    "fewer_queries": ((*SMALL, 8, 8), _segments(2, 30, 150)),
    "offset": ((*SMALL, 8, 8), {"query_offset": 61, "window": 50}),
    "some_see_nothing": ((*SMALL, 8, 8), {"query_offset": -20}),
    "one_query": ((2, 1, 150, 4, 2, 8, 8), {"query_offset": 100}),
    "one_of_each": ((1, 1, 1, 1, 1, 3, 2), {}),
}


def _assert_close(actual, expected, tolerance: float) -> None:
    for name, mine, exact in zip(NAMES, actual, expected, strict=True):
        assert np.isfinite(mine).all(), name
        assert np.linalg.norm(mine - exact) <= tolerance * np.linalg.norm(exact), name


@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", CASES)
def test_agrees_with_float64(name: str, dtype) -> None:
    shape, options = CASES[name]
    arrays = _arrays(*shape, dtype=dtype)
    with jax.enable_x64(True):
        exact = _call("reference", arrays, options, jnp.float64)
    _assert_close(
        _call("xla", arrays, options, dtype), exact, 1e-5 if dtype == np.float32 else 1e-2
    )


@pytest.mark.parametrize("name", ["grouped", "not_causal", "window", "padding", "fewer_queries"])
def test_reference_is_dot_product_attention(name: str) -> None:
    (batch, queries, keys, *_), options = CASES[name]
    query, key, value, d_output = _arrays(*CASES[name][0])
    distance = np.arange(queries)[:, None] + keys - queries - np.arange(keys)
    mask = np.ones((batch, 1, queries, keys), bool)
    if options.get("causal", True):
        mask &= distance >= 0
    mask &= distance < options.get("window", keys)
    if "key_mask" in options:
        mask &= options["key_mask"][:, None, None]
    if "key_segment_ids" in options:
        same = options["query_segment_ids"][:, :, None] == options["key_segment_ids"][:, None]
        mask &= same[:, None]
    some = mask.any(axis=(1, 3))  # What others get is no business of that function.
    with jax.enable_x64(True):
        output, *_ = _call("reference", (query, key, value, d_output), options, jnp.float64)
        expected = jax.nn.dot_product_attention(
            jnp.asarray(query),
            jnp.asarray(key),
            jnp.asarray(value),
            mask=jnp.asarray(mask),
            scale=options.get("scale"),
        )
    np.testing.assert_allclose(output[some], np.asarray(expected)[some], atol=1e-6)


def test_query_without_keys_gives_zero() -> None:
    arrays = _arrays(*SMALL, 8, 8)
    output, d_query, _, _ = _call("xla", arrays, {"query_offset": -20}, jnp.float32)
    assert (output[:, :20] == 0).all()
    assert (d_query[:, :20] == 0).all()
    assert (output[:, 20:] != 0).all()


def test_future_has_zero_gradient() -> None:
    arrays = _arrays(1, 150, 150, 2, 2, 8, 8)
    arrays[3][:, 100:] = 0
    _, d_query, d_key, d_value = _call("xla", arrays, {}, jnp.float32)
    for gradient in (d_query, d_key, d_value):
        assert (gradient[:, 100:] == 0).all()
        assert (gradient[:, :100] != 0).any()


@pytest.mark.parametrize("size", [1e4, 1e30])
def test_extreme_logits(size: float) -> None:
    query, key, value, d_output = _arrays(1, 100, 100, 2, 2, 1, 8)
    key = np.sign(key) * np.float32(size)
    with jax.enable_x64(True):
        exact = _call("reference", (np.sign(query), key, value, d_output), {}, jnp.float64)
    actual = _call("xla", (np.sign(query), key, value, d_output), {}, jnp.float32)
    assert all(np.isfinite(array).all() for array in actual)
    for index in (0, 3):
        np.testing.assert_allclose(actual[index], exact[index], atol=1e-5)


@pytest.mark.parametrize("window", [None, 33])
@pytest.mark.parametrize("chunk", [1, 24])
def test_cached_equals_whole_sequence(chunk: int, window: int | None) -> None:
    length = 96
    arrays = _arrays(2, length, length, 4, 2, 8, 8)[:3]
    query, key, value = (jnp.asarray(x, "float32") for x in arrays)
    whole = softmax_attention(query, key, value, window=window)
    step = jax.jit(lambda q, k, v, n: softmax_attention(q, k, v, window=window, query_offset=n))
    # What lies in the cache beyond the last key must not matter.
    cached_key, cached_value = (np.full((2, 160, 2, 8), 9.0, "float32") for _ in "kv")
    for start in range(0, length, chunk):
        part = slice(start, start + chunk)
        cached_key[:, part], cached_value[:, part] = key[:, part], value[:, part]
        output = step(query[:, part], cached_key, cached_value, np.int32(start))
        np.testing.assert_allclose(output, whole[:, part], atol=1e-5)


def test_blocks_out_of_sight_are_not_visited() -> None:
    x = jnp.ones((1, 1024, 1, 8))
    index = jnp.arange(1024)[None, :, None, None]
    keys = jnp.where((index >= 256) & (index < 640), x, jnp.nan)
    output = softmax_attention(x[:, :64], keys, keys, query_offset=500, window=100)
    assert np.isfinite(np.asarray(output)).all()


def _forward_and_backward(implementation, query, key, value):
    output, pull = jax.vjp(
        functools.partial(softmax_attention, implementation=implementation), query, key, value
    )
    return output, pull(output)


def _temporary_bytes(implementation: str, length: int) -> int:
    x = jax.ShapeDtypeStruct((1, length, 2, 16), jnp.float32)
    compiled = jax.jit(_forward_and_backward, static_argnums=0).lower(implementation, x, x, x)
    analysis = compiled.compile().memory_analysis()
    assert analysis is not None
    return analysis.temp_size_in_bytes


def test_memory_is_linear() -> None:
    short, long = (_temporary_bytes("xla", length) for length in (4096, 8192))
    assert long <= 2.1 * short
    assert short <= _temporary_bytes("reference", 4096) / 10


def _sizes(jaxpr) -> Iterator[int]:
    """Sizes of all values that are computed, in loops and calls too."""
    for equation in jaxpr.eqns:
        for variable in equation.outvars:
            yield math.prod(getattr(variable.aval, "shape", ()))
        for inner in jax.tree.leaves(equation.params, is_leaf=lambda x: hasattr(x, "jaxpr")):
            if hasattr(inner, "jaxpr"):
                yield from _sizes(inner.jaxpr)


def test_no_array_of_all_pairs() -> None:
    length = 4096
    x = jax.ShapeDtypeStruct((1, length, 2, 4), jnp.float32)
    jaxpr = jax.make_jaxpr(_forward_and_backward, static_argnums=0)("xla", x, x, x)
    sizes = list(_sizes(jaxpr.jaxpr))
    assert len(sizes) > 100  # The loops were looked into.
    assert max(sizes) < length * 128


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"query": jnp.ones((2, 5, 3, 8))}, r"multiple.*\(2, 5, 3, 8\).*\(2, 7, 2, 8\)"),
        ({"value": jnp.ones((2, 6, 2, 6))}, r"key and value.*\(2, 6, 2, 6\)"),
        ({"key_segment_ids": jnp.ones((2, 7), int)}, "query_segment_ids is missing"),
        ({"window": 0}, "window must be at least 1, got 0"),
        ({"implementation": "tpu"}, "'tpu'"),
    ],
)
def test_errors_name_the_argument(changes, message: str) -> None:
    arguments = {
        "query": jnp.ones((2, 5, 4, 8)),
        "key": jnp.ones((2, 7, 2, 8)),
        "value": jnp.ones((2, 7, 2, 6)),
    }
    with pytest.raises(InputError, match=message):
        softmax_attention(**(arguments | changes))
