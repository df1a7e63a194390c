"""What bricks drop in training: LoRA and DoRA at every site that they are attached at."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from modbrick.bricks import BrickConfig, DoRA, LoRA, plugged
from modbrick.bricks.bank import Bank
from modbrick.bricks.functional import plugged_decoder
from modbrick.bricks.plugging import with_dropout
from modbrick.errors import InputError
from modbrick.execution import ExecutionConfig
from modbrick.layers.offer import Offer
from modbrick.objective import ObjectiveConfig
from modbrick.parallel.choice import Choice
from modbrick.training.step import draws, loss_function
from modbrick.training.tasks.pretraining import next_token_totals
from tests.modbrick.bricks.tiny import MODEL, random_bricks

pytestmark = pytest.mark.usefixtures("quick_compilation")
PLAIN = ExecutionConfig(attention="reference", dispatch="reference", head_chunk=3)
ROWS, LENGTH = 4, 6
BRICKS = {
    "de": BrickConfig(("layer.*.attention.query", "head"), LoRA(rank=2, dropout=0.5)),
    "law": BrickConfig(("layer.*.attention.query",), LoRA(rank=4, dropout=0.25)),
    "style": BrickConfig(("layer.*.attention.value",), DoRA(rank=2, dropout=0.5)),
    "each": BrickConfig(("layer.*.attention.output",), LoRA(rank=2, pairs="expert", dropout=0.5)),
}
RATES = (0.5, 0.25)


def bank(rates: tuple[float, ...] = RATES) -> Bank:
    """Two LoRAs whose outputs are what they read."""
    eye = np.eye(8, dtype=np.float32)
    leaves = {
        "down": jnp.asarray(np.stack([eye, eye])),
        "up": jnp.asarray(np.stack([eye, eye])),
        "scale": jnp.ones(2),
    }
    return Bank(leaves, jnp.arange(2), LoRA().form, rates)


@jax.jit
def read(bank: Bank, x: Any, choice: Any, offer: Offer) -> jax.Array:
    """What the bricks of a bank read of the inputs."""
    return bank(x, jnp.zeros_like(x), choice, offer)


def offer(seed: int = 0, site: str = "attention.query") -> Offer:
    return Offer(random_keys=jax.random.split(jax.random.key(seed), ROWS), site=site)


X = np.random.default_rng(0).normal(size=(ROWS, LENGTH, 8)).astype(np.float32)
FIRST, SECOND = (Choice(jnp.full((ROWS, LENGTH, 1), number, jnp.int32)) for number in (0, 1))


@pytest.mark.parametrize(("choice", "rate"), [(FIRST, 0.5), (SECOND, 0.25)])
def test_the_share_of_entries_is_dropped_and_others_grow(choice: Choice, rate: float) -> None:
    found = np.asarray(read(bank(), X, choice, offer()))
    dropped = found == 0
    assert 0.4 * rate < dropped.mean() < 1.6 * rate
    np.testing.assert_allclose(found[~dropped], (X / (1 - rate))[~dropped], rtol=1e-6)


def test_every_row_token_site_brick_and_key_drops_others() -> None:
    zeros = np.asarray(read(bank(), X, FIRST, offer())) == 0
    masks = zeros.reshape(-1, 8)
    assert len(np.unique(masks, axis=0)) > 0.7 * len(masks)  # of 256
    halves = bank((0.5, 0.5))
    for other in (
        read(halves, X, SECOND, offer()),
        read(halves, X, FIRST, offer(1)),
        read(halves, X, FIRST, offer(site="attention.key")),
    ):
        assert (zeros != (np.asarray(other) == 0)).mean() > 0.3


def test_chosen_or_not_a_brick_drops_the_same() -> None:
    both = Choice(jnp.broadcast_to(jnp.arange(2, dtype=jnp.int32), (ROWS, LENGTH, 2)))
    chosen, apart = read(bank(), X, both, offer()), read(bank(), X, None, offer())
    np.testing.assert_allclose(chosen, apart, rtol=1e-6)
    sums = read(bank(), X, FIRST, offer()) + read(bank(), X, SECOND, offer())
    np.testing.assert_allclose(chosen, sums, rtol=1e-5, atol=1e-6)


def test_without_keys_or_for_other_bricks_nothing_is_dropped() -> None:
    plain = bank(())
    np.testing.assert_array_equal(read(bank(), X, FIRST, Offer()), read(plain, X, FIRST, Offer()))
    never = bank((0.0, 0.5))
    np.testing.assert_array_equal(read(never, X, FIRST, offer()), read(plain, X, FIRST, offer()))


def batch() -> dict[str, Any]:
    """Packed rows, two documents in each."""
    random = np.random.default_rng(1)
    tokens = random.integers(0, MODEL.vocabulary, (ROWS, LENGTH))
    arrays = {
        "tokens": tokens,
        "targets": np.roll(tokens, -1, axis=1),
        "segment_ids": np.repeat([[1, 2]], LENGTH // 2, axis=1).repeat(ROWS, axis=0),
        "positions": np.tile(np.arange(LENGTH // 2), (ROWS, 2)),
        "loss_mask": np.ones_like(tokens),
    }
    return {name: np.asarray(array, np.int32) for name, array in arrays.items()}


@functools.cache
def values() -> dict[str, Any]:
    """Values of model and bricks."""
    table = plugged_decoder(MODEL, BRICKS).table
    random = np.random.default_rng(2)
    drawn = {
        path: random.normal(path.endswith("scale"), 0.1, leaf.shape).astype(np.float32)
        for path, leaf in table.abstract().items()
    }
    return drawn | random_bricks(BRICKS)


def loss(microbatches: int = 1, head_chunk: int = 3) -> Any:
    execution = dataclasses.replace(PLAIN, head_chunk=head_chunk)
    function = loss_function(
        next_token_totals,
        MODEL,
        execution,
        ObjectiveConfig(),
        microbatches=microbatches,
        bricks=BRICKS,
    )
    return jax.jit(lambda values, data, key: function(values, data, jnp.int32(0), key)[0])


def test_a_model_drops_with_keys_only_and_alike_in_parts() -> None:
    key, data = jax.random.key(5), batch()
    whole = loss()
    plain, dropping = whole(values(), data, None), whole(values(), data, key)
    assert plain == loss_without_dropout(data)
    assert abs(dropping - plain) > 1e-4
    assert dropping == whole(values(), data, key)
    assert dropping != whole(values(), data, jax.random.key(6))
    parts = loss(2, LENGTH)
    assert parts(values(), data, key) == pytest.approx(float(dropping), rel=1e-6)


def loss_without_dropout(data: Any) -> jax.Array:
    """The loss of the same bricks with settings that drop nothing."""
    bricks = {}
    for name, config in BRICKS.items():
        assert isinstance(config.settings, LoRA | DoRA)
        settings = dataclasses.replace(config.settings, dropout=0.0)
        bricks[name] = dataclasses.replace(config, settings=settings)
    function = loss_function(next_token_totals, MODEL, PLAIN, ObjectiveConfig(), bricks=bricks)
    return jax.jit(lambda values, data: function(values, data, jnp.int32(0), None)[0])(
        values(), data
    )


@pytest.mark.parametrize(
    "name", ["de", *(pytest.param(name, marks=pytest.mark.verify) for name in ("style", "each"))]
)
def test_the_mean_over_keys_is_without_dropout(name: str) -> None:
    """Of what a brick adds at the first site that it changes, as layers behind are not linear."""
    config = dataclasses.replace(BRICKS[name], at=(BRICKS[name].at[0].replace("*", "0"),))
    bricks = {name: config}
    decoder = plugged_decoder(MODEL, bricks, PLAIN)
    parameters = {p: x for p, x in values().items() if not p.startswith("bricks.")}
    parameters |= random_bricks(bricks)
    site = config.at[0].split(".", 2)[2]
    tokens = jnp.asarray(batch()["tokens"])

    @jax.jit
    def captured(parameters: Any, keys: Any) -> jax.Array:
        model = decoder.bind(parameters, training=True)

        def one(key: Any) -> jax.Array:
            keys = None if key is None else jax.random.split(key, ROWS)
            found = model.features(tokens, random_keys=keys, capture=(site,)).captured[site]
            return found["0"][0]

        return one(None) if keys is None else jax.lax.map(one, keys).mean(0)

    count = 300
    mean = captured(parameters, jax.random.split(jax.random.key(0), count))
    few = captured(parameters, jax.random.split(jax.random.key(0), 1))
    plain = captured(parameters, None)
    error, noise = (np.linalg.norm(x - plain) for x in (mean, few))
    assert 0 < error < 2 * noise / count**0.5


def test_bricks_that_are_plugged_in_drop_nothing() -> None:
    """Bricks of any dropout are one bank, so that they are swapped without compiling."""
    table = random_bricks(BRICKS)
    found = plugged(MODEL, BRICKS, table)
    (of_query,) = found.segments["0"]["attention.query"]
    assert isinstance(of_query, Bank)
    assert of_query.rates == ()
    dropping = with_dropout(found, BRICKS).segments["0"]["attention.query"][0]
    assert isinstance(dropping, Bank)
    assert dropping.rates == (0.5, 0.25, 0.5, 0.5)


def test_a_run_draws_only_if_something_does() -> None:
    assert draws(MODEL, BRICKS)
    assert not draws(MODEL, {"de": BrickConfig(("head",), LoRA())})


@pytest.mark.parametrize("rate", [-0.1, 1.0])
def test_no_share_is_refused(rate: float) -> None:
    for kind in (LoRA, DoRA):
        with pytest.raises(InputError, match="at least 0 and below 1"):
            kind(dropout=rate)
