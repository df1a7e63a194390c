from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from modbrick.bricks import Adapter
from modbrick.errors import InputError
from modbrick.layers.offer import NOTHING
from tests.contracts.brick import SITE, SQUARE, BrickContract


class TestSerialAdapter(BrickContract):
    settings = (Adapter(hidden=3, activation="tanh"), Adapter(4, activation="tanh", scale=0.5))
    site = SQUARE
    at_first = frozenset({"up", "up_bias"})

    @staticmethod
    def formula(settings, leaves, x, y, weight):
        hidden = np.tanh(y @ leaves["down"] + leaves["down_bias"])
        return y + weight * settings.scale * (hidden @ leaves["up"] + leaves["up_bias"])

    def test_slots_of_experts_are_changed_alike(self) -> None:
        with pytest.raises(InputError, match="query has 2 a token here"):
            self.settings[0].leaves(dataclasses.replace(SITE, slots=2))


def test_a_single_expert_is_one_output() -> None:
    """Of attention experts with one a token, outputs are [B, S, 1, O]."""
    adapter = Adapter(hidden=3)
    random = np.random.default_rng(0)
    leaves = {
        name: jnp.asarray(random.normal(size=(1, *info.shape)), jnp.float32)
        for name, info in adapter.leaves(SQUARE).items()
    } | {"scale": jnp.ones(1)}
    y = jnp.asarray(random.normal(size=(2, 3, 1, 6)), jnp.float32)
    inputs = jnp.zeros((2, 3, 6))
    found = adapter.form(leaves, inputs, y, None, NOTHING)
    wanted = adapter.form(leaves, inputs, y[:, :, 0], None, NOTHING)
    np.testing.assert_allclose(found[:, :, 0], wanted, rtol=1e-6)


class TestParallelAdapter(BrickContract):
    settings = (Adapter(3, placement="parallel"), Adapter(4, placement="parallel", scale=2.0))
    site = SITE
    at_first = frozenset({"up", "up_bias"})

    @staticmethod
    def formula(settings, leaves, x, y, weight):
        hidden = np.maximum(x @ leaves["down"] + leaves["down_bias"], 0)
        return y + weight * settings.scale * (hidden @ leaves["up"] + leaves["up_bias"])


def test_a_bottleneck_of_nothing_is_refused() -> None:
    with pytest.raises(InputError, match="hidden width must be at least 1, got 0"):
        Adapter(hidden=0)
