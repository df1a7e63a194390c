"""Contract of kinds with keys and values in front: against float64, for all, some and no tokens.

Attention to a document of two tokens comes first; what a kind adds is compared with attention to
all keys at once, in numpy. A test class of a kind names settings that differ in length.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from modbrick.bricks.kinds.prefix import Prefix
from modbrick.bricks.memory import MemoryBank
from modbrick.decoder.sites import Site
from modbrick.layers.memory import Attended
from modbrick.parallel.choice import Choice
from tests.contracts.brick import IDS, WEIGHTS

AttentionKind = Literal["stickbreaking", "softmax"]
KINDS: tuple[AttentionKind, ...] = ("stickbreaking", "softmax")
HEADS, GROUPS, WIDTH, SCALE = 4, 2, 3, 0.7
SITE = Site("attention.memory", GROUPS * WIDTH, GROUPS * WIDTH, hook="memory")
RANDOM = np.random.default_rng(0)
QUERIES = RANDOM.normal(size=(2, 3, HEADS, WIDTH))
DOCUMENT = RANDOM.normal(size=(2, 2, GROUPS, WIDTH))  # keys and values of two tokens
POSITIONS = np.array([[0, 1, 2], [3, 4, 0]])

Arrays = dict[str, np.ndarray]


def attention(
    kind: AttentionKind, query: np.ndarray, keys: Any, values: Any, factors: Any
) -> tuple[np.ndarray, float]:
    """Output and what is left of one query of one head; keys from the farthest to the nearest."""
    logits = SCALE * np.asarray(keys) @ query
    if kind == "softmax":
        shares = np.exp(logits) * factors
        return shares @ values / shares.sum(), np.log(shares.sum())
    take = factors / (1 + np.exp(-logits))
    left, output = 1.0, np.zeros(WIDTH)
    for share, value in zip(take[::-1], np.asarray(values)[::-1], strict=True):
        output, left = output + left * share * value, left * (1 - share)
    return output, left


def of_document(
    kind: AttentionKind, dtype: Any = np.float32, window: int | None = None
) -> Attended:
    """Attention to the document alone."""
    output, left = np.zeros(QUERIES.shape), np.zeros(QUERIES.shape[:3])
    for *token, head in np.ndindex(left.shape):
        keys, values = DOCUMENT[:, :, head // (HEADS // GROUPS)]
        where = (*token, head)
        output[where], left[where] = attention(kind, QUERIES[where], keys, values, np.ones(2))
    return Attended(
        jnp.asarray(QUERIES, dtype),
        jnp.asarray(POSITIONS),
        jnp.asarray(output, dtype),
        jnp.asarray(left, np.float32),
        groups=GROUPS,
        scale=SCALE,
        window=window,
        kind=kind,
    )


@jax.jit
def applied(bank: MemoryBank, attended: Attended, choice: Choice | None) -> Attended:
    """What a bank adds."""
    return bank(attended, choice)


@pytest.mark.parametrize("kind", KINDS)
class MemoryBrickContract:
    """What a kind promises."""

    settings: ClassVar[Sequence[Prefix]]  # two, of other lengths
    at_first: ClassVar[Mapping[AttentionKind, set[str]]]  # arrays with a gradient at the first step

    def values(self, number: int, *, new: bool = False) -> Arrays:
        """Arrays of one of the bricks: as they begin, or random ones."""
        found = {}
        for place, (name, info) in enumerate(self.settings[number].leaves(SITE).items()):
            key = jax.random.fold_in(jax.random.key(number), place)
            initial = np.asarray(info.initial(key, info.shape))
            found[name] = initial if new else RANDOM.normal(0.0, 1.0, info.shape)
        return {name: np.asarray(value, np.float32) for name, value in found.items()}

    def bank(self, bricks: Sequence[Arrays]) -> MemoryBank:
        """The bricks stacked and padded, the padding full of what must not matter."""
        longest = max(settings.length for settings in self.settings)
        leaves: dict[str, list[Any]] = {}
        for settings, values in zip(self.settings, bricks, strict=True):
            for name, value in values.items():
                padded = np.full((longest, *value.shape[1:]), np.nan, np.float32)
                padded[: len(value)] = value
                leaves.setdefault(name, []).append(padded)
            for name, constant in settings.constants().items():
                leaves.setdefault(name, []).append(np.float32(constant))
        stacked = {name: jnp.stack(values) for name, values in leaves.items()}
        return MemoryBank(stacked, jnp.arange(len(bricks)), self.settings[0].form)

    def expected(
        self,
        kind: AttentionKind,
        bricks: Sequence[Arrays],
        ids: np.ndarray,
        weights: np.ndarray,
        window: int | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Attention of each token to its bricks, the first the farthest, and the document."""
        output, left = np.zeros(QUERIES.shape), np.zeros(QUERIES.shape[:3])
        for *token, head in np.ndindex(left.shape):
            where, group = (*token, head), head // (HEADS // GROUPS)
            keys, values, factors = [], [], []
            for number, weight in zip(ids[tuple(token)], weights[tuple(token)], strict=True):
                for place in range(self.settings[number].length if number >= 0 else 0):
                    distance = POSITIONS[tuple(token)] + self.settings[number].length - place
                    if window is None or distance < window:
                        at = (place, slice(group * WIDTH, (group + 1) * WIDTH))
                        keys.append(bricks[number]["keys"][at])
                        values.append(bricks[number]["values"][at])
                        factors.append(weight)
            output[where], left[where] = attention(
                kind,
                QUERIES[where],
                [*keys, *DOCUMENT[0, :, group]],
                [*values, *DOCUMENT[1, :, group]],
                np.array([*factors, 1.0, 1.0]),
            )
        return output, left

    @pytest.mark.parametrize("how", ["sets", "weighted", "window"])
    def test_each_token_attends_to_its_bricks_in_their_order(
        self, kind: AttentionKind, how: str
    ) -> None:
        bricks, window = [self.values(0), self.values(1)], 4 if how == "window" else None
        weights = np.abs(WEIGHTS) if how == "weighted" else np.ones_like(WEIGHTS)
        choice = Choice(jnp.asarray(IDS), jnp.asarray(weights) if how == "weighted" else None)
        document = of_document(kind, window=window)
        actual = applied(self.bank(bricks), document, choice)
        output, left = self.expected(kind, bricks, IDS, weights, window)
        np.testing.assert_allclose(actual.output, output, rtol=2e-5, atol=2e-6)
        assert actual.left is not None
        np.testing.assert_allclose(actual.left, left, rtol=2e-5, atol=2e-6)
        assert np.array_equal(actual.output[1, 1], document.output[1, 1]), "without: same bits"
        assert not np.allclose(actual.output[0], document.output[0], atol=1e-2)

    @pytest.mark.parametrize("window", [None, 4])
    def test_without_a_choice_all_stand_in_their_order(
        self, kind: AttentionKind, window: int | None
    ) -> None:
        bricks = [self.values(0), self.values(1)]
        actual = applied(self.bank(bricks), of_document(kind, window=window), None)
        both = np.broadcast_to(np.array([0, 1]), IDS.shape)
        output, _ = self.expected(kind, bricks, both, np.ones(IDS.shape), window)
        np.testing.assert_allclose(actual.output, output, rtol=2e-5, atol=2e-6)

    @pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
    def test_a_new_brick_takes_of_softmax_only(self, kind: AttentionKind, dtype: str) -> None:
        """Values are zero: in stick-breaking attention nothing changes, softmax is divided."""
        bank = self.bank([self.values(0, new=True), self.values(1, new=True)])
        document = of_document(kind, dtype)
        for choice in (None, Choice(jnp.asarray(IDS))):
            actual = applied(bank, document, choice)
            assert actual.output.dtype == document.output.dtype
            if kind == "stickbreaking":
                assert np.array_equal(actual.output, document.output)
            else:
                shares = np.asarray(actual.output, np.float32) / np.asarray(document.output)
                used = np.ones((2, 3), bool) if choice is None else (IDS >= 0).any(-1)
                assert ((shares[used] > 0) & (shares[used] < 1)).all()
                rounding = 1e-5 if dtype == "float32" else 0.02
                assert np.ptp(shares, axis=-1).max() < rounding, "one factor for a head"

    def test_a_weight_of_nothing_changes_nothing(self, kind: AttentionKind) -> None:
        document = of_document(kind)
        choice = Choice(jnp.asarray(IDS), jnp.zeros(IDS.shape))
        actual = applied(self.bank([self.values(0), self.values(1)]), document, choice)
        np.testing.assert_allclose(actual.output, document.output, rtol=1e-6, atol=1e-6)

    def test_gradients_reach_the_bricks_that_were_used_and_no_others(
        self, kind: AttentionKind
    ) -> None:
        bank = self.bank([self.values(0, new=True), self.values(1, new=True)])
        document, ids = of_document(kind), jnp.asarray(np.where(IDS == 1, 1, -1))

        def loss(leaves: Any) -> jax.Array:
            changed = MemoryBank(leaves, bank.rows, bank.form)(document, Choice(ids))
            return (changed.output * jnp.arange(1.0, 1 + WIDTH)).sum()

        gradients = jax.jit(jax.grad(loss))(bank.leaves)
        for name in self.settings[0].leaves(SITE):
            found = np.asarray(gradients[name])
            assert np.isfinite(found).all()
            assert not found[0].any(), name
            assert found[1].any() == (name in self.at_first[kind]), name
            assert not found[1, self.settings[1].length :].any(), "padding"

    def test_a_brick_that_is_in_no_row_is_not_here(self, kind: AttentionKind) -> None:
        bank, document = self.bank([self.values(0), self.values(1)]), of_document(kind)
        elsewhere = MemoryBank(bank.leaves, jnp.array([-1, 1, 0]), bank.form)
        moved = np.array([2, 1, -1])[IDS]  # 0 is plugged in as 2, and -1 stays
        actual = applied(elsewhere, document, Choice(jnp.asarray(moved)))
        wanted = applied(bank, document, Choice(jnp.asarray(IDS)))
        np.testing.assert_allclose(actual.output, wanted.output, rtol=1e-5, atol=1e-6)
        nowhere = applied(elsewhere, document, Choice(jnp.zeros_like(IDS)))
        assert np.array_equal(nowhere.output, document.output)
        only = MemoryBank(bank.leaves, jnp.array([-1, 1]), bank.form)
        one = np.where(np.arange(2) == 0, 1, -1) * np.ones(IDS.shape, int)
        np.testing.assert_allclose(
            applied(only, document, None).output,
            applied(bank, document, Choice(jnp.asarray(one))).output,
            rtol=1e-5,
            atol=1e-6,
        )
