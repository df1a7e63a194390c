from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from modbrick.layers.parameters import normal
from modbrick.layers.projections import Projection, accurate_matmul, matmul


@pytest.mark.parametrize("bias", [False, True])
def test_affine(bias):
    projection = Projection(
        (5, 7), ("width", "heads"), initialiser=normal(1.0), bias=bias, rngs=nnx.Rngs(0)
    )
    assert hasattr(projection, "bias") == bias
    x = np.random.default_rng(0).normal(size=(2, 3, 5))
    expected = x @ np.asarray(projection.weight[...], np.float64)
    if bias:
        projection.bias[...] = jnp.arange(7.0)
        expected = expected + np.arange(7.0)
    np.testing.assert_allclose(projection(jnp.asarray(x, jnp.float32)), expected, rtol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_accurate_products_and_gradients(dtype):
    rng = np.random.default_rng(1)
    x = jnp.asarray(rng.normal(size=(2, 3, 257)), dtype)
    weight, dy = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((257, 5), (2, 3, 5)))
    y, pull = jax.vjp(accurate_matmul, x, weight)
    dx, dweight = pull(dy)
    assert [str(a.dtype) for a in (y, dx, dweight)] == ["float32", jnp.dtype(dtype).name, "float32"]
    x64, w64, dy64 = (np.asarray(a.astype(jnp.float32), np.float64) for a in (x, weight, dy))
    rounding = 2**-8 if dtype == jnp.bfloat16 else 1e-6
    for actual, expected, bound in (
        (y, x64 @ w64, 1e-6),
        (dx, dy64 @ w64.T, rounding),
        (dweight, np.einsum("bsi,bso->io", x64, dy64), 1e-6),
    ):
        error = np.asarray(actual.astype(jnp.float32), np.float64) - expected
        assert np.linalg.norm(error) < bound * np.linalg.norm(expected)


@pytest.mark.parametrize(
    ("dtype", "forward", "backward"),
    [(jnp.float32, "HIGHEST", "HIGHEST"), (jnp.bfloat16, "HIGHEST", "HIGH")],
)
def test_precision_of_gradients_follows_the_dtype_of_inputs(dtype, forward, backward):
    weight = jnp.ones((3, 2))

    def precisions(function):
        text = str(jax.make_jaxpr(function)(jnp.ones((4, 3), dtype)))
        return re.findall(r"precision=\(?(?:Precision\.)?(\w+)", text)

    def gradients(x):
        return jax.vjp(accurate_matmul, x, weight)[1](jnp.ones((4, 2)))

    assert precisions(lambda x: accurate_matmul(x, weight)) == [forward]
    assert precisions(gradients)[-2:] == [backward] * 2


def test_bfloat16_products_accumulate_in_float32():
    x = jnp.full((1, 4095), 1.0, jnp.bfloat16)
    weight = jnp.full((4095, 1), 1 + 2**-7, jnp.float32)  # a bfloat16 holds it, not the product
    product = matmul(x, weight)
    assert product.dtype == jnp.float32
    assert float(product[0, 0]) == 4095 * (1 + 2**-7)
    projection = Projection((3, 2), ("a", "b"), initialiser=normal(1.0), rngs=nnx.Rngs(0))
    assert projection(jnp.ones((1, 3), jnp.bfloat16)).dtype == jnp.bfloat16
