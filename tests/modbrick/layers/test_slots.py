"""Sums over slots are those along the axis, and so are their gradients."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from modbrick.layers.slots import over_slots, weighted_sum

RANDOM = np.random.default_rng(0)


def drawn(*shape: int) -> Any:
    return jnp.asarray(RANDOM.normal(size=shape), jnp.float32)


def along_the_axis(slots: Any, gates: Any) -> Any:
    return (slots.astype(jnp.float32) * gates[..., None]).sum(-2)


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("tokens", [(2, 5), (1, 1)])
def test_what_all_slots_share(tokens: tuple[int, int], count: int) -> None:
    values, cotangent = drawn(*tokens, 4), drawn(*tokens, count, 4)
    found, back = jax.vjp(lambda x: over_slots(x, count), values)
    assert np.array_equal(found, np.repeat(values[:, :, None], count, 2))
    np.testing.assert_allclose(back(cotangent)[0], cotangent.sum(-2), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weighted_slots(dtype: str) -> None:
    slots, gates, cotangent = drawn(2, 5, 3, 4).astype(dtype), drawn(2, 5, 3), drawn(2, 5, 4)
    found, back = jax.vjp(weighted_sum, slots, gates)
    wanted, wanted_back = jax.vjp(along_the_axis, slots, gates)
    assert found.dtype == jnp.float32
    for one, other in zip(
        (found, *back(cotangent)), (wanted, *wanted_back(cotangent)), strict=True
    ):
        assert one.dtype == other.dtype
        found, wanted = one.astype(jnp.float32), other.astype(jnp.float32)
        np.testing.assert_allclose(found, wanted, rtol=1e-5)
