"""Sparse deltas do not vary by token; what other kinds promise for tokens is tested for weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from modbrick.bricks import Settings, SparseDelta
from modbrick.decoder.sites import Site
from modbrick.errors import InputError
from modbrick.parallel.choice import Choice
from tests.contracts.brick import BrickContract

WEIGHT = Site("attention.query.weight", 5, 5, hook="weights", shape=(6, 5))
BANK = Site("feed_forward.up.weight", 5, 5, hook="weights", shape=(4, 6, 5))
SCALE = Site("attention_norm.scale", 7, 7, hook="weights", shape=(7,))


class TestSparseDelta(BrickContract):
    """The one token of the contract is the weight."""

    settings: ClassVar[Sequence[Settings]] = (SparseDelta(0.2), SparseDelta(0.4))
    site = WEIGHT
    at_first = frozenset({"values"})

    def values(self, number: int, *, new: bool = False) -> dict[str, np.ndarray]:
        found = super().values(number, new=True)
        if not new:
            found["values"] = np.random.default_rng(number).normal(size=found["values"].shape)
        info = self.settings[number].leaves(self.site)
        return {name: np.asarray(x, info[name].dtype) for name, x in found.items()}

    def bank(self, bricks: Any) -> Any:
        bank = super().bank(bricks)
        positions = bank.leaves["positions"].astype(jnp.int32)
        return type(bank)({**bank.leaves, "positions": positions}, bank.rows, bank.form)

    def tokens(self) -> tuple[Any, Any]:
        weight = np.random.default_rng(7).normal(size=(1, 1, *self.site.shape))
        return weight.astype(np.float32), weight.astype(np.float32)

    def added(self, weight: np.ndarray, *bricks: tuple[dict[str, np.ndarray], float]) -> Any:
        flat = weight.astype(np.float64).reshape(-1)
        for values, factor in bricks:
            for position, value in zip(values["positions"], values["values"], strict=True):
                flat[int(position)] += factor * value
        return flat.reshape(weight.shape)

    @pytest.mark.parametrize("weighted", [False, True], ids=["sets", "weighted"])
    def test_each_token_gets_its_bricks_in_their_order(self, weighted: bool) -> None:
        bricks = [self.values(0), self.values(1)]
        weight, _ = self.tokens()
        weights = jnp.asarray([[[0.5, -2.0]]]) if weighted else None
        factors = (0.5, -2.0) if weighted else (1.0, 1.0)
        choice = Choice(jnp.asarray([[[1, 0]]]), weights)
        found = self.applied(self.bank(bricks), weight, weight, choice)
        wanted = self.added(weight, *zip(reversed(bricks), factors, strict=True))
        np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-6)

    def test_without_a_choice_all_apply_in_their_order(self) -> None:
        bricks = [self.values(0), self.values(1)]
        weight, _ = self.tokens()
        found = self.applied(self.bank(bricks), weight, weight, None)
        wanted = self.added(weight, *((values, 1.0) for values in bricks))
        np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-6)

    def test_a_new_brick_changes_no_bit(self) -> None:  # type: ignore[override]
        bank = self.bank([self.values(0, new=True), self.values(1, new=True)])
        weight, _ = self.tokens()
        for choice in (None, Choice(jnp.asarray([[[1, 0]]]))):
            assert np.array_equal(self.applied(bank, weight, weight, choice), weight)

    def test_a_weight_of_nothing_changes_nothing(self) -> None:
        weight, _ = self.tokens()
        choice = Choice(jnp.asarray([[[0, 1]]]), jnp.zeros((1, 1, 2)))
        bank = self.bank([self.values(0), self.values(1)])
        assert np.array_equal(self.applied(bank, weight, weight, choice), weight)

    def test_slots_of_experts_are_changed_alike(self) -> None:
        """A bank is one weight."""

    def test_gradients_reach_the_bricks_that_were_used_and_no_others(self) -> None:
        bank = self.bank([self.values(0), self.values(1)])
        weight, _ = self.tokens()

        def loss(values: Any) -> jax.Array:
            leaves = {**bank.leaves, "values": values}
            form = type(bank)(leaves, bank.rows, bank.form)
            changed = self.applied(form, weight, weight, Choice(jnp.asarray([[[1]]])))
            return (changed * jnp.arange(1.0, 1 + weight.size).reshape(weight.shape)).sum()

        gradients = np.asarray(jax.grad(loss)(bank.leaves["values"]))
        assert not gradients[0].any()
        np.testing.assert_allclose(gradients[1], bank.leaves["positions"][1] + 1.0)

    def test_a_brick_that_is_in_no_row_is_not_here(self) -> None:
        bank = self.bank([self.values(0), self.values(1)])
        weight, _ = self.tokens()
        elsewhere = type(bank)(bank.leaves, jnp.array([-1, 1, 0]), bank.form)
        nowhere = self.applied(elsewhere, weight, weight, Choice(jnp.zeros((1, 1, 1), jnp.int32)))
        assert np.array_equal(nowhere, weight)


class TestSparseDeltaOfABank(TestSparseDelta):
    site = BANK


class TestSparseDeltaOfAScale(TestSparseDelta):
    site = SCALE


@pytest.mark.parametrize("density", [0.001, 0.01, 0.3, 1.0])
def test_positions_are_a_sample_without_repetition(density: float) -> None:
    site = Site("feed_forward.up.weight", 50, 50, hook="weights", shape=(40, 50))
    info = SparseDelta(density).leaves(site)["positions"]
    assert info.shape == (round(2000 * density),)
    drawn = [np.asarray(info.initial(jax.random.key(seed), info.shape)) for seed in (0, 1)]
    for positions in drawn:
        assert positions.dtype == np.int32
        assert (np.diff(positions) > 0).all()
        assert info.flaw(positions) is None
    assert (drawn[0] != drawn[1]).any() == (density < 1)


def test_indices_of_nothing_are_found() -> None:
    info = SparseDelta().leaves(SCALE)["positions"]
    assert info.flaw(np.array([7])) == "holds indices from 7 to 7, there are 7"
    assert info.flaw(np.array([-1])) == "holds indices from -1 to -1, there are 7"
    assert info.flaw(np.array([1.0])) == "holds float64, not indices"


@pytest.mark.parametrize("density", [0.0, 1.5])
def test_a_density_of_nothing_is_refused(density: float) -> None:
    with pytest.raises(InputError, match="density must be above 0 and at most 1"):
        SparseDelta(density)


def test_a_weight_beyond_32_bits_is_refused() -> None:
    site = Site("feed_forward.up.weight", 2**15, 2**15, hook="weights", shape=(2**16, 2**15))
    with pytest.raises(InputError, match="positions of a sparse delta are of 32 bits"):
        SparseDelta().leaves(site)
