from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from modbrick.bricks import DoRA
from modbrick.decoder.sites import Site
from modbrick.errors import InputError
from modbrick.layers.offer import Offer
from tests.contracts.brick import RANDOM, SITE, BrickContract

LINEAR = dataclasses.replace(SITE, linear=True)
WEIGHT = RANDOM.normal(size=(6, 5)).astype(np.float32)
BIAS = RANDOM.normal(size=5).astype(np.float32)


class TestDoRA(BrickContract):
    settings = (DoRA(rank=2, alpha=6.0), DoRA(rank=3, alpha=4.0, scaling="root"))
    site = LINEAR
    offer = Offer(jnp.asarray(WEIGHT), jnp.asarray(BIAS))
    at_first = frozenset({"up", "magnitude"})

    def tokens(self):
        x, _ = super().tokens()
        return x, x @ WEIGHT + BIAS

    @staticmethod
    def formula(settings, leaves, x, y, weight):
        base = WEIGHT.astype(np.float64)
        scale = (
            settings.alpha / {"rank": settings.rank, "root": settings.rank**0.5}[settings.scaling]
        )
        directions = base + scale * leaves["down"] @ leaves["up"]
        norms = [np.linalg.norm(matrix, axis=0) for matrix in (base, directions)]
        changed = leaves["magnitude"] * norms[0] * directions / norms[1]
        return y + weight * (x @ (changed - base))

    def test_slots_of_experts_are_changed_alike(self) -> None:
        bank = dataclasses.replace(LINEAR, experts=4, slots=2)
        with pytest.raises(InputError, match=r"norms of 4 weights at attention\.query"):
            self.settings[0].leaves(bank)

    def test_the_norm_has_no_gradient(self) -> None:
        """That of `up` is of a product whose factors are constants (section 4.3)."""
        values = {name: jnp.asarray(value)[None] for name, value in self.values(0).items()}
        values["scale"] = jnp.full(1, 3.0)
        x, y = self.tokens()
        offer = dataclasses.replace(self.offer, outputs=y)

        def total(up: jax.Array) -> jax.Array:
            return self.settings[0].form({**values, "up": up}, x, y, None, offer).sum()

        moved = WEIGHT + 3.0 * np.asarray(values["down"][0] @ values["up"][0])
        factors = np.linalg.norm(WEIGHT, axis=0) / np.linalg.norm(moved, axis=0)
        factors = np.asarray(values["magnitude"][0]) * factors
        expected = 3.0 * (x @ values["down"][0]).sum((0, 1))[:, None] * factors
        np.testing.assert_allclose(jax.grad(total)(values["up"])[0], expected, rtol=1e-4)


def test_units_that_the_base_leaves_at_zero_stay_finite() -> None:
    """Their magnitude is a multiple of nothing."""
    dora, weight = DoRA(rank=1), jnp.zeros((6, 5))
    leaves = {"magnitude": jnp.ones((1, 5)), "down": jnp.ones((1, 6, 1)), "scale": jnp.ones(1)}
    x, y = jnp.ones((1, 1, 6)), jnp.zeros((1, 1, 5))
    for up in (jnp.zeros((1, 1, 5)), jnp.ones((1, 1, 5))):
        found = dora.form({**leaves, "up": up}, x, y, None, Offer(weight, outputs=y))
        assert not np.asarray(found).any()


def test_where_no_linear_map_is_it_is_refused() -> None:
    with pytest.raises(InputError, match="residual has none: attach it at a projection"):
        DoRA().leaves(Site("residual", 6, 6))


def test_a_rank_of_nothing_is_refused() -> None:
    with pytest.raises(InputError, match="rank of a DoRA must be at least 1, got 0"):
        DoRA(rank=0)
