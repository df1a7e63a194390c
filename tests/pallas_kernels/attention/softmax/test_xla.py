from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.softmax_attention import softmax_attention
from tests.contracts import exact_attention
from tests.contracts.softmax_attention import CASES, SMALL, arrays_of, assert_close, call, exact
from tests.contracts.sweep import sweep


@sweep(
    ("name", "dtype"),
    itertools.product(CASES, [np.float32, jnp.bfloat16]),
    [
        *((name, np.float32) for name in ("odd_sizes", "not_causal", "all_masks")),
        *((name, np.float32) for name in ("offset", "one_of_each")),
        ("all_masks", jnp.bfloat16),
    ],
    ids=lambda value: value if isinstance(value, str) else np.dtype(value).name,
)
def test_agrees_with_float64(name: str, dtype) -> None:
    shape, options = CASES[name]
    found = call("xla", arrays_of(*shape, dtype=dtype), options, dtype)
    assert_close(found, exact(name, dtype), 1e-5 if dtype == np.float32 else 1e-2)


def test_query_without_keys_gives_zero() -> None:
    arrays = arrays_of(*SMALL, 8, 8)
    output, d_query, _, _ = call("xla", arrays, {"query_offset": -20}, jnp.float32)
    assert (output[:, :20] == 0).all()
    assert (d_query[:, :20] == 0).all()
    assert (output[:, 20:] != 0).all()


def test_future_has_zero_gradient() -> None:
    arrays = arrays_of(1, 150, 150, 2, 2, 8, 8)
    arrays[3][:, 100:] = 0
    _, d_query, d_key, d_value = call("xla", arrays, {}, jnp.float32)
    for gradient in (d_query, d_key, d_value):
        assert (gradient[:, 100:] == 0).all()
        assert (gradient[:, :100] != 0).any()


@pytest.mark.parametrize("size", [1e4, 1e30])
def test_extreme_logits(size: float) -> None:
    query, key, value, d_output = arrays_of(1, 100, 100, 2, 2, 1, 8)
    key = np.sign(key) * np.float32(size)
    expected = exact_attention.softmax((np.sign(query), key, value, d_output), {})
    actual = call("xla", (np.sign(query), key, value, d_output), {}, jnp.float32)
    assert all(np.isfinite(array).all() for array in actual)
    for index in (0, 3):
        np.testing.assert_allclose(actual[index], expected[index], atol=1e-5)


@sweep(("chunk", "window"), itertools.product([1, 24], [None, 33]), [(1, 33), (24, None)])
def test_cached_equals_whole_sequence(chunk: int, window: int | None) -> None:
    length = 96
    arrays = arrays_of(2, length, length, 4, 2, 8, 8)[:3]
    query, key, value = (jnp.asarray(x, "float32") for x in arrays)
    whole = jax.jit(functools.partial(softmax_attention, window=window))(query, key, value)
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
    attend = functools.partial(softmax_attention, query_offset=500, window=100)
    output = jax.jit(attend)(x[:, :64], keys, keys)
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
