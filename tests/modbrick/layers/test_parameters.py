from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from modbrick.layers.parameters import constant, normal, parameter, uniform_fan_in

pytestmark = pytest.mark.usefixtures("quick_compilation")

KEY = jax.random.key(0)


def test_normal_has_its_standard_deviation():
    values = np.asarray(normal(0.02)(KEY, (200, 300)))
    assert values.std() == pytest.approx(0.02, rel=0.02)
    assert abs(values.mean()) < 0.001


def test_uniform_fills_one_over_the_input_width():
    """Weights are `[expert, in, out]`: the bound is 1/in."""
    values = np.asarray(uniform_fan_in(KEY, (4, 50, 300)))
    assert abs(values).max() <= 1 / 50
    assert values.std() == pytest.approx(1 / 50 / np.sqrt(3), rel=0.02)


def test_every_parameter_draws_its_own_key():
    rngs = nnx.Rngs(params=0)
    first, second = (parameter(rngs, normal(1.0), (3,), ("width",)) for _ in range(2))
    assert not np.array_equal(first[...], second[...])
    assert first.axes == ("width",)
    assert first.dtype == jnp.float32


def test_each_dimension_needs_a_name():
    with pytest.raises(ValueError, match=r"\('width',\).*\(2, 3\)"):
        parameter(nnx.Rngs(0), constant(1.0), (2, 3), ("width",))
