from __future__ import annotations

import math
from collections.abc import Callable
from typing import get_args

import jax.numpy as jnp
import numpy as np
import pytest

from modbrick.config import Activation
from modbrick.layers.activations import ACTIVATIONS

erf = np.vectorize(math.erf)

FORMULAS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "gelu": lambda x: x * (1 + erf(x / np.sqrt(2))) / 2,
    "gelu_tanh": lambda x: x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))) / 2,
    "silu": lambda x: x / (1 + np.exp(-x)),
    "relu": lambda x: np.maximum(x, 0),
    "relu_squared": lambda x: np.maximum(x, 0) ** 2,
    "tanh": np.tanh,
    "identity": lambda x: x,
}


@pytest.mark.parametrize("name", get_args(Activation))
def test_matches_formula(name):
    x = np.linspace(-6, 6, 101)
    actual = ACTIVATIONS[name](jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(actual, FORMULAS[name](x), rtol=1e-4, atol=1e-5)


def test_configs_can_name_all_of_them():
    assert set(ACTIVATIONS) == set(get_args(Activation))
