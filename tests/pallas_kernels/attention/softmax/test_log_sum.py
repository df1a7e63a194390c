"""The logarithm of the sum that softmax attention divides by, and its gradient."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import softmax_attention as op
from pallas_kernels.softmax_attention import softmax_attention, softmax_attention_and_log_sum
from tests.contracts import exact_attention
from tests.contracts.softmax_attention import CASES, arrays_of


def found(
    implementation: str, arrays: list[np.ndarray], options: dict[str, Any], dtype: Any
) -> list[np.ndarray]:
    """Both results and the gradients of query, key and value."""

    def call(*inputs: Any) -> Any:
        return softmax_attention_and_log_sum(*inputs, **options, implementation=implementation)

    def run(inputs: Any, cotangents: Any) -> Any:
        results, pull = jax.vjp(call, *inputs)
        return (*results, *pull(op.SoftmaxOutput(*cotangents)))

    *inputs, d_output, d_log_sum = (jnp.asarray(x, dtype) for x in arrays)
    d_log_sum = d_log_sum.astype(jnp.promote_types(dtype, jnp.float32))
    results = jax.jit(run)(tuple(inputs), (d_output, d_log_sum))
    return [np.asarray(x, np.float64) for x in results]


def arguments(name: str, dtype: Any = np.float32) -> tuple[list[np.ndarray], dict[str, Any]]:
    shape, options = CASES[name]
    arrays = arrays_of(*shape, dtype=dtype)
    d_log_sum = np.random.default_rng(3).standard_normal(arrays[0].shape[:3])
    return [*arrays, d_log_sum.astype(np.float32).astype(np.float64)], options


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("all_masks", "float32"), ("some_see_nothing", "float32"), ("grouped", "bfloat16")],
)
@pytest.mark.parametrize("implementation", ["reference", "xla"])
def test_agrees_with_float64(implementation: str, name: str, dtype: str) -> None:
    arrays, options = arguments(name, jnp.dtype(dtype))
    actual = found(implementation, arrays, options, dtype)
    expected = exact_attention.softmax_and_log_sum(arrays, options)
    sees = np.isfinite(expected[1])
    assert np.array_equal(np.isfinite(actual[1]), sees), "minus infinity where no key is seen"
    assert (actual[1][~sees] == -np.inf).all()
    for place, (mine, exact) in enumerate(zip(actual, expected, strict=True)):
        mine, exact = (x[sees] if place == 1 else x for x in (mine, exact))
        assert np.isfinite(mine).all()
        tolerance = 1e-5 if dtype == "float32" else 1e-2
        assert np.linalg.norm(mine - exact) <= tolerance * np.linalg.norm(exact), place


def test_output_and_its_gradients_have_the_bits_that_they_have_alone() -> None:
    arrays, options = arguments("all_masks")
    arrays[4] = np.zeros_like(arrays[4])
    output, _, *gradients = found("xla", arrays, options, jnp.float32)
    *inputs, d_output = (jnp.asarray(x, jnp.float32) for x in arrays[:4])

    def run(inputs: Any, d_output: Any) -> Any:
        alone, pull = jax.vjp(lambda *x: softmax_attention(*x, **options), *inputs)
        return (alone, *pull(d_output))

    for mine, alone in zip([output, *gradients], jax.jit(run)(inputs, d_output), strict=True):
        np.testing.assert_array_equal(mine, np.asarray(alone, np.float64))


@pytest.mark.parametrize("implementation", ["reference", "xla"])
def test_of_no_keys_it_is_minus_infinity(implementation: str) -> None:
    query, none = jnp.ones((1, 3, 2, 4)), jnp.ones((1, 0, 2, 4))
    result = softmax_attention_and_log_sum(query, none, none, implementation=implementation)
    assert (result.output == 0).all()
    assert (result.log_sum == -jnp.inf).all()


@pytest.mark.parametrize(("implementation", "platform"), [("splash", "tpu"), ("cudnn", "gpu")])
def test_kernels_of_other_libraries_refuse_by_name(implementation: str, platform: str) -> None:
    array = jax.ShapeDtypeStruct((1, 256, 2, 64), jnp.bfloat16)
    case = dataclasses.replace(op.Case(array, array, array), log_sum=True)
    assert "no log-sum-exp" in (op.available_implementations(case, platform)[implementation] or "")
    arrays = (jnp.ones((1, 256, 2, 64), jnp.bfloat16),) * 3
    with pytest.raises(ValueError, match=f"'{implementation}' cannot run: .*no log-sum-exp"):
        softmax_attention_and_log_sum(*arrays, implementation=implementation, query_offset=0)
