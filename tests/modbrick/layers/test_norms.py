from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from modbrick.config import NormConfig
from modbrick.layers.norms import Norm

CONFIGS = [NormConfig(), NormConfig(bias=False, epsilon=0.1), NormConfig("rms", bias=False)]


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_matches_formula(config):
    random = np.random.default_rng(0)
    x = random.normal(2.0, 3.0, (2, 5, 12))
    scale, bias = random.normal(size=12), random.normal(size=12)
    norm = Norm(config, 12, rngs=nnx.Rngs(0))
    norm.scale[...] = jnp.asarray(scale, jnp.float32)
    if config.bias:
        norm.bias[...] = jnp.asarray(bias, jnp.float32)
    if config.kind == "layer":
        expected = (x - x.mean(-1, keepdims=True)) / np.sqrt(
            x.var(-1, keepdims=True) + config.epsilon
        )
    else:
        expected = x / np.sqrt((x**2).mean(-1, keepdims=True) + config.epsilon)
    expected = expected * scale + (bias if config.bias else 0.0)
    np.testing.assert_allclose(norm(jnp.asarray(x, jnp.float32)), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_a_new_norm_has_unit_scale(config):
    norm = Norm(config, 4, rngs=nnx.Rngs(0))
    x = jnp.array([[-3.0, 3.0, -3.0, 3.0]])
    np.testing.assert_allclose(norm(x), np.sign(x) * (3 / np.sqrt(9 + config.epsilon)), rtol=1e-6)


def test_bfloat16_is_normalised_in_float32():
    """A mean of 300 leaves two bits of a bfloat16 for the deviation: only float32 keeps it."""
    x = jnp.asarray(np.random.default_rng(1).normal(300.0, 4.0, (8, 64)), jnp.bfloat16)
    norm = Norm(NormConfig(), 64, rngs=nnx.Rngs(0))
    narrow, wide = norm(x), norm(x.astype(jnp.float32))
    assert narrow.dtype == jnp.bfloat16
    np.testing.assert_array_equal(narrow, wide.astype(jnp.bfloat16))
