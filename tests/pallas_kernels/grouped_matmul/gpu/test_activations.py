"""Activations of the GPU kernels against jax's own, and their slopes against its derivatives."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.grouped_matmul.activations import ACTIVATIONS
from pallas_kernels.grouped_matmul.gpu.activations import find_kernel_activation


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_values_and_slopes_are_those_of_jax(name: str) -> None:
    activation = ACTIVATIONS[name]
    in_kernel = find_kernel_activation(activation)
    assert in_kernel is not None
    x = jnp.linspace(-12, 12, 601, dtype=jnp.float32)
    value, slope = in_kernel(x)
    np.testing.assert_allclose(value, activation(x), rtol=2e-6, atol=3e-6)
    np.testing.assert_allclose(slope, jax.vmap(jax.grad(activation))(x), rtol=2e-6, atol=3e-6)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_far_from_zero_all_is_finite(name: str) -> None:
    in_kernel = find_kernel_activation(ACTIVATIONS[name])
    assert in_kernel is not None
    for x in (-1e9, 1e9):
        assert all(np.isfinite(float(y)) for y in in_kernel(jnp.float32(x)))


def test_other_functions_are_not_for_kernels() -> None:
    assert find_kernel_activation(jnp.sin) is None
