"""Many bricks in one model: each example has its own, whatever else is in the batch."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest

from modbrick.bricks import IA3, BrickConfig, LoRA, Plugged, initial_bricks, plugged
from modbrick.decoder.decoder import Decoder
from modbrick.decoder.functional import functional_decoder, initial_parameters
from modbrick.errors import InputError
from tests.compilation import max_traces
from tests.modbrick.bricks.tiny import BRICKS, MODEL, random_bricks

pytestmark = pytest.mark.usefixtures("quick_compilation")
DECODER = functional_decoder(MODEL)
TOKENS = np.random.default_rng(0).integers(0, 31, (5, 7))
SETS = ["de+tone+gain", None, "law+de", "drift", "tone"]


@pytest.fixture(scope="module")
def parameters() -> Any:
    return initial_parameters(MODEL, jax.random.key(0))


@jax.jit
def logits(
    parameters: Any, tokens: Any, bricks: Plugged | None, ids: Any, weights: Any = None
) -> Any:
    model = DECODER.bind(parameters)
    return model(tokens, bricks=bricks, brick_ids=ids, brick_weights=weights).logits


@pytest.fixture(scope="module")
def trained() -> Plugged:
    return plugged(MODEL, BRICKS, random_bricks())


def test_a_batch_of_many_sets_is_each_example_alone(parameters: Any, trained: Plugged) -> None:
    together = np.asarray(logits(parameters, TOKENS, trained, trained.ids(SETS)))
    values = random_bricks()
    for example, given in enumerate(SETS):
        tokens = np.repeat(TOKENS[example : example + 1], len(SETS), axis=0)
        names = {} if given is None else {name: BRICKS[name] for name in given.split("+")}
        # Plugged in alone, without ids: all apply.
        alone = logits(parameters, tokens, plugged(MODEL, names, values), None)[0]
        np.testing.assert_allclose(together[example], alone, rtol=1e-5, atol=1e-5)
        if given is not None:
            plain = logits(parameters, tokens, None, None)[0]
            assert np.abs(together[example] - plain).max() > 1e-2, given


def test_without_bricks_an_example_keeps_its_bits(parameters: Any, trained: Plugged) -> None:
    """Whatever bricks are plugged in: the program is one, the values are not."""
    new = plugged(MODEL, BRICKS, initial_bricks(MODEL, BRICKS, jax.random.key(1)))
    none = trained.ids([None] * len(TOKENS))
    base = logits(parameters, TOKENS, new, np.broadcast_to(none, (len(TOKENS), 1, 3)))
    mixed = logits(parameters, TOKENS, trained, trained.ids(SETS))
    assert np.array_equal(mixed[1], base[1])
    np.testing.assert_allclose(base, logits(parameters, TOKENS, None, None), rtol=1e-6, atol=1e-6)


def test_tokens_have_bricks_of_their_own_with_weights(parameters: Any, trained: Plugged) -> None:
    """From the fourth token on half of one brick: those before do not know."""
    ids = np.full((*TOKENS.shape, 1), -1)
    ids[:, 3:] = trained.names.index("law")
    weights = np.full(ids.shape, 0.5, np.float32)
    half = np.asarray(logits(parameters, TOKENS, trained, ids, weights))
    plain = np.asarray(logits(parameters, TOKENS, None, None))
    np.testing.assert_allclose(half[:, :3], plain[:, :3], rtol=1e-5, atol=1e-6)
    assert (np.abs(half[:, 3:] - plain[:, 3:]).max(-1) > 1e-4).all()
    # Half the weight of a LoRA is half its `up`.
    values = random_bricks()
    smaller = {
        p: x * (0.5 if p.startswith("bricks.law.") and p.endswith("up") else 1)
        for p, x in values.items()
    }
    whole = logits(parameters, TOKENS, plugged(MODEL, BRICKS, smaller), ids, np.ones_like(weights))
    np.testing.assert_allclose(half, whole, rtol=1e-5, atol=1e-5)


def test_adding_swapping_and_removing_compiles_nothing(parameters: Any) -> None:
    query = ("layer.*.attention.query",)
    big, small = BrickConfig(query, LoRA(rank=3)), BrickConfig((*query, "head"), LoRA(rank=2))
    bricks = {"one": big, "two": small, "three": small}
    values = random_bricks(bricks)
    first = plugged(MODEL, bricks, values)
    sets = ["one", "two", None, "three", "two"]
    wanted = np.asarray(logits(parameters, TOKENS, first, first.ids(sets)))
    with max_traces(Decoder, "features", 0):
        # Removed, and in another order.
        fewer = plugged(MODEL, {"two": small}, values, like=first)
        ids = fewer.ids(["two" if given == "two" else None for given in sets])
        found = np.asarray(logits(parameters, TOKENS, fewer, ids))
        np.testing.assert_array_equal(found[[1, 4]], wanted[[1, 4]])
        # Another one in its place.
        new = plugged(
            MODEL, {"new": small, "one": big}, random_bricks({"new": small, "one": big}), like=first
        )
        found = logits(parameters, TOKENS, new, new.ids(["one", "new", None, "new", None]))
        assert not np.array_equal(found, wanted)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (BrickConfig(("layer.*.attention.query",), LoRA(rank=5)), "before there was room for"),
        (
            BrickConfig(("layer.*.attention.key",), LoRA(rank=2)),
            "at segments.0.attention.key before",
        ),
        (BrickConfig(("layer.*.attention.query",), IA3()), "bricks of another kind"),
        (BrickConfig(("head",), LoRA(rank=2)), "no bricks were plugged in at head before"),
    ],
)
def test_what_would_compile_again_is_refused(config: BrickConfig, message: str) -> None:
    first = {"one": BrickConfig(("layer.*.attention.query",), LoRA(rank=2))}
    like = plugged(MODEL, first, random_bricks(first))
    with pytest.raises(InputError, match=message):
        plugged(MODEL, {"other": config}, random_bricks({"other": config}), like=like)


def test_a_model_has_what_is_plugged_in(parameters: Any, trained: Plugged) -> None:
    model = DECODER.bind(parameters).plug(trained)
    want = logits(parameters, TOKENS, trained, None)
    np.testing.assert_allclose(
        jax.jit(lambda t: model(t).logits)(TOKENS), want, rtol=1e-5, atol=1e-6
    )


def test_ids_name_sets(trained: Plugged) -> None:
    assert trained.ids(["law", None, "de+law"]).tolist() == [[[1, -1]], [[-1, -1]], [[0, 1]]]


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        (["dee"], "no brick 'dee' is plugged in; did you mean 'de'"),
        (["de+law+de"], "brick 'de' stands twice in de[+]law[+]de"),
    ],
)
def test_sets_that_cannot_be_are_refused(trained: Plugged, sets: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        trained.ids(sets)
