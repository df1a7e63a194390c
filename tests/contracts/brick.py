"""Contract of every kind of customized brick: against float64, for all, for some and for no tokens.

A test class of a kind names settings that share a form and the formula in numpy.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from modbrick.bricks.bank import Bank
from modbrick.decoder.sites import Site
from modbrick.layers.offer import NOTHING, Offer
from modbrick.parallel.choice import Choice

SITE = Site("attention.query", 6, 5)
SQUARE = Site("feed_forward", 6, 6)
RANDOM = np.random.default_rng(0)
# Places of two bricks a token: both orders, the same twice, one, none.
IDS = np.array([[[0, 1], [1, 0], [1, -1]], [[-1, 0], [-1, -1], [0, -1]]], np.int32)
WEIGHTS = np.array([[[1, 0.5], [2, -1], [0.25, 1]], [[1, 3], [1, 1], [1, 1]]], np.float32)

Arrays = dict[str, np.ndarray]


@jax.jit
def applied(bank: Bank, x: Any, y: Any, choice: Choice | None, offer: Offer = NOTHING) -> jax.Array:
    """What a bank makes of a site's outputs."""
    return bank(x, y, choice, dataclasses.replace(offer, outputs=y))


class BrickContract:
    """What a kind promises."""

    settings: ClassVar[Sequence[Any]]  # two, of one form and of other sizes
    site: ClassVar[Site] = SITE
    offer: ClassVar[Offer] = NOTHING
    at_first: ClassVar[frozenset[str]]  # arrays with a gradient before the first step

    @staticmethod
    def formula(settings: Any, leaves: Arrays, x: np.ndarray, y: np.ndarray, weight: float) -> Any:
        """What a brick makes of the outputs `y` of one token with inputs `x`, in float64."""
        raise NotImplementedError

    def values(self, number: int, *, new: bool = False) -> Arrays:
        """Arrays of one of the bricks: as they begin, or random ones."""
        found = {}
        for place, (name, info) in enumerate(self.settings[number].leaves(self.site).items()):
            key = jax.random.fold_in(jax.random.key(number), place)
            initial = np.asarray(info.initial(key, info.shape))
            found[name] = initial if new else initial + RANDOM.normal(0.0, 0.5, info.shape)
        return {name: np.asarray(value, np.float32) for name, value in found.items()}

    def bank(self, bricks: Sequence[Arrays]) -> Bank:
        """The bricks stacked and padded, as `plugged` does."""
        leaves: dict[str, list[Any]] = {}
        infos = [settings.leaves(self.site) for settings in self.settings]
        for settings, values in zip(self.settings, bricks, strict=True):
            for name, value in values.items():
                info = settings.leaves(self.site)[name]
                shape = np.max([other[name].shape for other in infos], axis=0)
                padded = np.full(shape, info.padding, np.float32)
                padded[tuple(map(slice, value.shape))] = value
                leaves.setdefault(name, []).append(padded)
            for name, constant in settings.constants().items():
                leaves.setdefault(name, []).append(np.float32(constant))
        stacked = {name: jnp.stack(values) for name, values in leaves.items()}
        return Bank(stacked, jnp.arange(len(bricks)), self.settings[0].form)

    def tokens(self) -> tuple[Any, Any]:
        """Inputs and outputs of a site, `[2, 3, width]`."""
        inputs = RANDOM.normal(size=(2, 3, self.site.input_width))
        outputs = RANDOM.normal(size=(2, 3, self.site.output_width))
        return inputs.astype(np.float32), outputs.astype(np.float32)

    def expected(
        self, bricks: Sequence[Arrays], x: np.ndarray, y: np.ndarray, weights: np.ndarray
    ) -> np.ndarray:
        """The formula for each token's bricks, one after another."""
        result = y.astype(np.float64)
        for token in np.ndindex(*y.shape[:2]):
            for place, number in enumerate(IDS[token]):
                if number >= 0:
                    leaves = {n: v.astype(np.float64) for n, v in bricks[number].items()}
                    result[token] = self.formula(
                        self.settings[number],
                        leaves,
                        x[token].astype(np.float64),
                        result[token],
                        float(weights[token][place]),
                    )
        return result

    def applied(self, bank: Bank, x: Any, y: Any, choice: Choice | None) -> jax.Array:
        """What a bank makes of the site's outputs."""
        return applied(bank, x, y, choice, self.offer)

    @pytest.mark.parametrize("weighted", [False, True], ids=["sets", "weighted"])
    def test_each_token_gets_its_bricks_in_their_order(self, weighted: bool) -> None:
        bricks = [self.values(0), self.values(1)]
        x, y = self.tokens()
        choice = Choice(jnp.asarray(IDS), jnp.asarray(WEIGHTS) if weighted else None)
        actual = np.asarray(self.applied(self.bank(bricks), x, y, choice))
        expected = self.expected(bricks, x, y, WEIGHTS if weighted else np.ones_like(WEIGHTS))
        np.testing.assert_allclose(actual, expected, rtol=2e-5, atol=2e-5)
        assert np.array_equal(actual[1, 1], y[1, 1]), "a token without bricks keeps its bits"
        assert not np.allclose(actual[0], y[0], atol=1e-2)

    def test_without_a_choice_all_apply_in_their_order(self) -> None:
        bricks = [self.values(0), self.values(1)]
        x, y = self.tokens()
        actual = self.applied(self.bank(bricks), x, y, None)
        both = np.broadcast_to(np.array([0, 1], np.int32), IDS.shape)
        chosen = self.applied(self.bank(bricks), x, y, Choice(jnp.asarray(both)))
        np.testing.assert_allclose(actual, chosen, rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
    def test_a_new_brick_changes_no_bit(self, dtype: str) -> None:
        bank = self.bank([self.values(0, new=True), self.values(1, new=True)])
        x, y = (jnp.asarray(values, dtype) for values in self.tokens())
        for choice in (None, Choice(jnp.asarray(IDS))):
            actual = self.applied(bank, x, y, choice)
            assert actual.dtype == y.dtype
            assert np.array_equal(actual, y)

    def test_a_weight_of_nothing_changes_nothing(self) -> None:
        bank = self.bank([self.values(0), self.values(1)])
        x, y = self.tokens()
        choice = Choice(jnp.asarray(IDS), jnp.zeros(IDS.shape))
        np.testing.assert_allclose(self.applied(bank, x, y, choice), y, rtol=1e-6, atol=1e-6)

    def test_slots_of_experts_are_changed_alike(self) -> None:
        bank = self.bank([self.values(0), self.values(1)])
        x, y = self.tokens()
        slots = np.stack([y, 2 * y], axis=2)
        for choice in (None, Choice(jnp.asarray(IDS))):
            actual = self.applied(bank, x, slots, choice)
            for slot in range(2):
                alone = self.applied(bank, x, slots[:, :, slot], choice)
                np.testing.assert_allclose(actual[:, :, slot], alone, rtol=1e-5, atol=1e-5)

    def test_gradients_reach_the_bricks_that_were_used_and_no_others(self) -> None:
        bank = self.bank([self.values(0, new=True), self.values(1, new=True)])
        trained = set(self.settings[0].leaves(self.site))
        x, y = self.tokens()
        ids = jnp.asarray(np.where(IDS == 1, 1, -1))  # the second one only

        def loss(leaves: Any) -> jax.Array:
            changed = self.applied(Bank(leaves, bank.rows, bank.form), x, y, Choice(ids))
            return (changed * jnp.arange(1.0, 1 + self.site.output_width)).sum()

        gradients = jax.jit(jax.grad(loss))(bank.leaves)
        for name in trained:
            assert not np.asarray(gradients[name])[0].any(), name
            assert np.asarray(gradients[name])[1].any() == (name in self.at_first), name

    def test_a_brick_that_is_in_no_row_is_not_here(self) -> None:
        bank = self.bank([self.values(0), self.values(1)])
        x, y = self.tokens()
        elsewhere = Bank(bank.leaves, jnp.array([-1, 1, 0]), bank.form)
        moved = np.array([2, 1, -1])[IDS]  # 0 is plugged in as 2, and -1 stays
        actual = self.applied(elsewhere, x, y, Choice(jnp.asarray(moved)))
        wanted = self.applied(bank, x, y, Choice(jnp.asarray(IDS)))
        np.testing.assert_allclose(actual, wanted, rtol=1e-5, atol=1e-6)
        nowhere = self.applied(elsewhere, x, y, Choice(jnp.zeros_like(IDS)))
        assert np.array_equal(nowhere, y)
