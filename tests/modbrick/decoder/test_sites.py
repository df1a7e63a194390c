from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from modbrick.bricks import BrickConfig, LoRA, initial_bricks, plugged
from modbrick.bricks.bank import Bank
from modbrick.config import ExpertsConfig, LayerConfig, NormConfig, RouterConfig
from modbrick.decoder.decoder import Decoder
from modbrick.decoder.sites import Site, model_sites
from modbrick.layers.context import Bricks
from tests.compilation import max_traces
from tests.modbrick.layers.tiny import (
    ATTENTIONS,
    DENSE,
    EXPERT_FEED_FORWARD,
    VOCABULARY,
    WIDTH,
    model_config,
    model_of,
    relative_error,
    run,
    tokens_of,
)

pytestmark = pytest.mark.usefixtures("quick_compilation")

TOKENS = tokens_of(3, 6)
LINEAR = ExpertsConfig(4, 2, RouterConfig("linear"))
LAYERS = {
    "dense": DENSE,
    "experts": LayerConfig(
        dataclasses.replace(ATTENTIONS["stickbreaking experts"], experts=LINEAR),
        dataclasses.replace(EXPERT_FEED_FORWARD, experts=LINEAR),
    ),
}
SITES = [
    *(
        (name, f"layer.*.{s.name}")
        for name, layer in LAYERS.items()
        for s in model_sites(model_config(layer)).layers["0"]
        if s.hook == "outputs"
    ),
    *((name, site) for name in LAYERS for site in ("embedding", "head")),
]
# Sites at a linear map, and where its weight lies; a bank adds the update to every expert.
WEIGHTS = {
    "head": ("head", "weight"),
    **{
        f"layer.*.{name}": ("segments", "0", *name.split("."), "weight")
        for name in (
            "attention.query",
            "attention.key",
            "attention.value",
            "attention.output",
            "feed_forward.up",
            "feed_forward.gate",
            "feed_forward.down",
        )
    },
    **{
        f"layer.*.{name}.router": ("segments", "0", name, "router", "output", "weight")
        for name in ("attention", "feed_forward")
    },
}

_models: dict[str, tuple[Decoder, Bricks]] = {}


def model_and_bricks(name):
    """Two layers, and two LoRAs that change nothing at each of their sites."""
    if name not in _models:
        model = model_of(model_config(LAYERS[name], LAYERS[name]))
        brick = BrickConfig(tuple(site for own, site in SITES if own == name), LoRA(2, alpha=3.0))
        pair = {"one": brick, "two": brick}
        values = initial_bricks(model.config, pair, jax.random.key(0))
        _models[name] = model, plugged(model.config, pair, values)
    return _models[name]


def with_update(bricks: Bricks, address: str, variants=(0, 1), seed: int = 0) -> Bricks:
    """Gives the brick at one site random `up` matrices in these variants."""
    site = address.removeprefix("layer.*.")
    inside = site != address
    found = bricks.segments["0"] if inside else bricks.decoder
    brick = brick_at(bricks, address)
    random = np.random.default_rng(seed).normal(0.0, 0.4, brick.leaves["up"].shape)
    chosen = np.isin(np.arange(2), variants)[:, None, None]
    leaves = {**brick.leaves, "up": jnp.asarray(random * chosen, jnp.float32)}
    sites = {**found, site: (dataclasses.replace(brick, leaves=leaves),)}
    return Bricks({"0": sites}, bricks.decoder) if inside else Bricks(bricks.segments, sites)


def brick_at(bricks: Bricks, address: str) -> Bank:
    site = address.removeprefix("layer.*.")
    (brick,) = (bricks.decoder if site == address else bricks.segments["0"])[site]
    assert isinstance(brick, Bank)
    return brick


def ids(*rows) -> np.ndarray:
    """An id for each token from one for each example."""
    return np.repeat(np.array(rows, np.int32)[:, None], TOKENS.shape[1], axis=1)


@pytest.mark.parametrize("name", LAYERS)
def test_bricks_that_change_nothing(name):
    model, bricks = model_and_bricks(name)
    plain = run(model, TOKENS).logits
    assert (
        relative_error(run(model, TOKENS, bricks=bricks, brick_ids=ids(0, 1, -1)).logits, plain)
        < 1e-6
    )


@pytest.mark.parametrize(("name", "site"), SITES)
def test_each_site_reacts_for_the_tokens_that_choose_it(name, site):
    """Example 0 uses variant 0, example 1 variant 1, example 2 none."""
    model, bricks = model_and_bricks(name)
    plain = np.asarray(run(model, TOKENS).logits)
    for variants in ((0,), (1,)):
        changed = with_update(bricks, site, variants)
        logits = np.asarray(run(model, TOKENS, bricks=changed, brick_ids=ids(0, 1, -1)).logits)
        for row in range(3):
            error = relative_error(logits[row], plain[row])
            assert error > 1e-3 if row in variants else error < 1e-6, (row, variants)


@pytest.mark.parametrize(("name", "site"), [pair for pair in SITES if pair[1] in WEIGHTS])
def test_at_a_linear_map_a_lora_is_an_update_of_the_weight(name, site):
    model, bricks = model_and_bricks(name)
    changed = with_update(bricks, site)
    brick = brick_at(changed, site)
    down, up = (np.asarray(brick.leaves[name])[..., 1, :, :] for name in ("down", "up"))
    update = 1.5 * (down @ up)
    graph, parameters = nnx.split(model)
    merged = jax.tree.map(np.asarray, nnx.as_pure(parameters))
    *parents, leaf = WEIGHTS[site]
    node = merged
    for parent in parents:
        node = node[parent]
    weight = node[leaf]
    if weight.ndim == update.ndim + 1:
        update = update[:, None]
    node[leaf] = weight + update
    expected = run(nnx.merge(graph, merged), TOKENS).logits
    actual = run(model, TOKENS, bricks=changed, brick_ids=ids(1, 1, 1)).logits
    assert relative_error(expected, run(model, TOKENS).logits) > 1e-3
    assert relative_error(actual, expected) < 1e-5


def test_ids_by_example_by_token_or_none_at_all():
    model, bricks = model_and_bricks("dense")
    changed = with_update(bricks, "layer.*.residual")
    by_token = run(model, TOKENS, bricks=changed, brick_ids=ids(0, 1, -1)).logits
    by_example = run(model, TOKENS, bricks=changed, brick_ids=np.array([0, 1, -1], np.int32)).logits
    np.testing.assert_allclose(by_example, by_token, rtol=1e-5, atol=1e-6)
    both = np.broadcast_to(np.array([0, 1], np.int32), (3, 1, 2))
    np.testing.assert_allclose(
        run(model, TOKENS, bricks=changed).logits,
        run(model, TOKENS, bricks=changed, brick_ids=both).logits,
        rtol=1e-4,
        atol=1e-5,
    )
    # A brick that only the last tokens choose leaves the first ones alone.
    late = ids(0, 0, 0)
    late[:, :3] = -1
    logits = run(model, TOKENS, bricks=changed, brick_ids=late).logits
    plain = run(model, TOKENS).logits
    assert relative_error(logits[:, :3], plain[:, :3]) < 1e-6
    assert relative_error(logits[:, 3:], plain[:, 3:]) > 1e-3


def test_swapping_bricks_compiles_nothing():
    model, bricks = model_and_bricks("dense")

    def logits(swapped):
        return run(model, TOKENS, bricks=swapped, brick_ids=ids(0, 1, -1)).logits

    first = logits(with_update(bricks, "head", seed=1))
    with max_traces(Decoder, "features", 0):
        second = logits(with_update(bricks, "layer.*.attention.key", seed=2))
    assert relative_error(second, first) > 1e-3
    detached = Bricks(bricks.segments, {})
    with max_traces(Decoder, "features", 0), pytest.raises(AssertionError, match="traced > 0"):
        logits(detached)
    with max_traces(Decoder, "features", 1):
        logits(detached)


def test_bricks_at_one_site_apply_in_order():
    model, bricks = model_and_bricks("dense")
    one, two = (brick_at(with_update(bricks, "head", seed=s), "head") for s in (1, 2))
    logits = [
        run(model, TOKENS, bricks=Bricks(decoder={"head": pair})).logits
        for pair in ((one, two), (one,), (two,))
    ]
    plain = run(model, TOKENS).logits
    assert relative_error(logits[0] + plain, logits[1] + logits[2]) < 1e-5


def test_widths_of_sites():
    dense = model_sites(model_config(DENSE))
    widths = {s.name: (s.input_width, s.output_width) for s in dense.layers["0"]}
    assert widths["attention.query"] == (WIDTH, 16)
    assert widths["attention.key"] == widths["attention.value"] == (WIDTH, 8)
    assert widths["feed_forward.down"] == (24, WIDTH)
    assert widths["feed_forward.hidden"] == (24, 24)
    assert "attention.router" not in widths
    sparse = {s.name: s for s in model_sites(model_config(LAYERS["experts"])).layers["0"]}
    assert {"attention.router", "feed_forward.router"} <= set(sparse)
    # Each of a token's experts has outputs of its own.
    hidden = EXPERT_FEED_FORWARD.hidden
    up = Site("feed_forward.up", WIDTH, hidden, slots=2, experts=4, linear=True)
    assert sparse["feed_forward.up"] == up
    assert sparse["feed_forward.hidden"] == Site("feed_forward.hidden", WIDTH, hidden, 2)
    down = Site("feed_forward.down", hidden, WIDTH, experts=4, linear=True)
    assert sparse["feed_forward.down"] == down
    # What is a linear map is known, too: its weight is at hand.
    maps = {s.name for s in dense.layers["0"] if s.linear}
    assert maps == {
        *(f"attention.{name}" for name in ("query", "key", "value", "output")),
        *(f"feed_forward.{name}" for name in ("up", "gate", "down")),
    }
    assert {s.name for s in dense.decoder if s.linear} == {"head"}
    assert sparse["attention.router"].linear
    assert not sparse["attention.router"].experts
    assert {s.name: s.output_width for s in dense.decoder} == {
        "features": WIDTH,
        "embedding": WIDTH,
        "prompt": WIDTH,
        "norm": WIDTH,
        "head": VOCABULARY,
    }


def test_norms_are_sites_of_their_own_hook():
    layer = dataclasses.replace(
        DENSE,
        attention=dataclasses.replace(
            DENSE.attention,
            query_key_norm=NormConfig("rms", bias=False),
            query_key_norm_axis="head",
        ),
    )
    sites = model_sites(model_config(layer))
    norms = {s.name: s.output_width for s in sites.layers["0"] if s.hook == "norm"}
    head = layer.attention.head_width
    assert norms == {
        "attention_norm": WIDTH,
        "feed_forward_norm": WIDTH,
        "attention.query_norm": head,
        "attention.key_norm": head,
    }
    assert [s.name for s in sites.decoder if s.hook == "norm"] == ["norm"]


def test_what_stands_in_front_has_sites_of_its_own():
    config = model_config(DENSE)
    sites = model_sites(config)
    (memory,) = (s for s in sites.layers["0"] if s.hook == "memory")
    assert memory == Site("attention.memory", 8, 8, hook="memory"), "all key heads together"
    (prompt,) = (s for s in sites.decoder if s.hook == "prompt")
    assert prompt == Site("prompt", WIDTH, WIDTH, hook="prompt", length=config.context)
