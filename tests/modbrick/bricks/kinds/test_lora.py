from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from modbrick.bricks import LoRA
from modbrick.decoder.sites import Site
from modbrick.errors import InputError
from modbrick.layers.offer import Offer
from modbrick.parallel.choice import Choice
from tests.contracts.brick import IDS, RANDOM, WEIGHTS, BrickContract

# Two slots a token, of experts 2 and 0 of three.
EXPERTS, GATES = np.array([2, 0]), np.array([0.75, 0.5], np.float32)


def over_tokens(values):
    return jnp.broadcast_to(jnp.asarray(values), (2, 3, *values.shape))


class TestLoRA(BrickContract):
    settings = (LoRA(rank=2, alpha=6.0), LoRA(rank=3, alpha=4.0, scaling="root"))
    at_first = frozenset({"up"})

    @staticmethod
    def formula(settings, leaves, x, y, weight):
        divisor = {"rank": settings.rank, "root": np.sqrt(settings.rank)}[settings.scaling]
        return y + weight * settings.alpha / divisor * (x @ leaves["down"] @ leaves["up"])


def product(settings, leaves, expert: int, x: np.ndarray) -> np.ndarray:
    return settings.scale * (x @ leaves["down"][expert] @ leaves["up"][expert])


class TestPairsOfExperts(BrickContract):
    """Where each slot has outputs of its own."""

    settings = (LoRA(2, alpha=6.0, pairs="expert"), LoRA(3, alpha=4.0, pairs="expert"))
    site = Site("attention.query", 6, 5, slots=2, experts=3, linear=True)
    offer = Offer(experts=over_tokens(EXPERTS), gates=over_tokens(GATES))
    at_first = frozenset({"up"})

    def tokens(self):
        x, y = super().tokens()
        return x, np.stack([y, 2 * y], axis=2)

    @staticmethod
    def formula(settings, leaves, x, y, weight):
        changes = [product(settings, leaves, expert, x) for expert in EXPERTS]
        return y + weight * np.stack(changes)

    def test_slots_of_experts_are_changed_alike(self) -> None:
        """Not here: each has the pair of its own expert, whichever it is."""
        bricks = [self.values(0), self.values(1)]
        x, y = self.tokens()
        experts = RANDOM.integers(0, 3, (2, 3, 2))
        offer = dataclasses.replace(self.offer, experts=jnp.asarray(experts))
        choice = Choice(jnp.asarray(IDS), jnp.asarray(WEIGHTS))
        found = self.bank(bricks)(x, y, choice, offer)
        for where in np.ndindex(2, 3, 2):
            token = where[:2]
            used = [(n, w) for n, w in zip(IDS[token], WEIGHTS[token], strict=True) if n >= 0]
            wanted = y[where].astype(np.float64)
            for n, w in used:
                wanted += w * product(self.settings[n], bricks[n], int(experts[where]), x[token])
            np.testing.assert_allclose(found[where], wanted, rtol=2e-5, atol=2e-5)


class TestPairsOfSummedExperts(BrickContract):
    """Where the outputs are the sum over slots, weighted by their gates."""

    settings = TestPairsOfExperts.settings
    site = Site("attention.output", 6, 5, experts=3, linear=True)
    offer = Offer(
        experts=over_tokens(EXPERTS),
        gates=over_tokens(GATES),
        slots=jnp.asarray(RANDOM.normal(size=(2, 3, 2, 6)), jnp.float32),
    )
    at_first = frozenset({"up"})

    def tokens(self):
        _, y = super().tokens()
        # The formula sees what the slots have, as if it were the token's.
        return np.asarray(self.offer.slots), y

    @staticmethod
    def formula(settings, leaves, x, y, weight):
        each = zip(EXPERTS, GATES.astype(np.float64), x, strict=True)
        return y + weight * sum(g * product(settings, leaves, e, h) for e, g, h in each)

    def test_slots_of_experts_are_changed_alike(self) -> None:
        """There is one output."""
        assert self.site.slots == 1


@pytest.mark.parametrize("site", [Site("attention.key", 6, 5), Site("feed_forward", 6, 6)])
def test_pairs_of_experts_where_there_are_none_are_refused(site: Site) -> None:
    with pytest.raises(InputError, match=f"{site.name} has no experts in this model"):
        LoRA(pairs="expert").leaves(site)


def test_scale() -> None:
    assert LoRA(rank=4).scale == 1.0
    assert LoRA(rank=4, alpha=8.0).scale == 2.0
    assert LoRA(rank=4, alpha=8.0, scaling="root").scale == 4.0


def test_a_rank_of_nothing_is_refused() -> None:
    with pytest.raises(InputError, match="rank of a LoRA must be at least 1, got 0"):
        LoRA(rank=0)
