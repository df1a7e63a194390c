from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from modbrick.layers.parameters import normal
from modbrick.layers.projections import Projection, matmul


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


def test_bfloat16_products_accumulate_in_float32():
    x = jnp.full((1, 4095), 1.0, jnp.bfloat16)
    weight = jnp.full((4095, 1), 1 + 2**-7, jnp.float32)  # a bfloat16 holds it, not the product
    product = matmul(x, weight)
    assert product.dtype == jnp.float32
    assert float(product[0, 0]) == 4095 * (1 + 2**-7)
    projection = Projection((3, 2), ("a", "b"), initialiser=normal(1.0), rngs=nnx.Rngs(0))
    assert projection(jnp.ones((1, 3), jnp.bfloat16)).dtype == jnp.bfloat16
