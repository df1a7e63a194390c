"""Bricks that stand for other weights: a model with them is one of these weights."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from modbrick.bricks import (
    BrickConfig,
    DoRA,
    LoRA,
    NormTuning,
    SparseDelta,
    plugged,
    sparse_difference,
)
from modbrick.bricks.functional import plugged_decoder
from modbrick.config.families import dense
from modbrick.decoder.functional import functional_decoder, initial_parameters
from modbrick.decoder.sites import model_sites
from modbrick.errors import InputError
from tests.modbrick.bricks.tiny import MODEL, random_bricks

pytestmark = pytest.mark.usefixtures("quick_compilation")
DENSE = dense(vocabulary=31, width=16, layers=3, heads=2, feed_forward_width=24, dtype="float32")
TOKENS = np.random.default_rng(0).integers(0, 31, (2, 7))
Values = dict[str, Any]


def parameters_of(model: Any) -> Values:
    """Parameters of which none is as it begins: norms have scales, biases are there."""
    random = np.random.default_rng(1)
    values = initial_parameters(model, jax.random.key(0))
    return {
        path: np.asarray(value + random.normal(0.0, 0.1, value.shape), np.float32)
        for path, value in values.items()
    }


def logits(model: Any, parameters: Values, bricks: Any = None, **arguments: Any) -> np.ndarray:
    decoder = functional_decoder(model)

    @jax.jit
    def run(parameters: Any, bricks: Any) -> Any:
        return decoder.bind(parameters)(jnp.asarray(TOKENS), bricks=bricks, **arguments).logits

    return np.asarray(run(parameters, bricks))


def each_expert(weights: Values, bricks: Values, path: str, layer: int) -> None:
    for expert in range(4):
        down, up = (bricks[f"{path}.{leaf}"][layer, expert] for leaf in ("down", "up"))
        weights[f"{path}.weight"][layer, expert] += 1.5 * down @ up


def decomposed(weights: Values, bricks: Values, path: str, layer: int) -> None:
    down, up, magnitude = (bricks[f"{path}.{leaf}"][layer] for leaf in ("down", "up", "magnitude"))
    weight = weights[f"{path}.weight"][layer]
    directions = weight + 2.0 * down @ up
    norms = np.linalg.norm(weight, axis=0) / np.linalg.norm(directions, axis=0)
    weights[f"{path}.weight"][layer] = magnitude * norms * directions


def scaled(weights: Values, bricks: Values, path: str, layer: int) -> None:
    for leaf in ("scale", "bias"):
        weights[f"{path}.{leaf}"][layer] += bricks[f"{path}.{leaf}"][layer]


def scattered(weights: Values, bricks: Values, path: str, layer: int) -> None:
    flat = weights[path][layer].reshape(-1)
    np.add.at(flat, bricks[f"{path}.positions"][layer], bricks[f"{path}.values"][layer])


SUBLAYERS = ("attention", "feed_forward")
CASES: dict[str, Any] = {
    "LoRA of each expert": (
        MODEL,
        LoRA(rank=2, alpha=3.0, pairs="expert"),
        ("attention.query", "attention.output", "feed_forward.up", "feed_forward.down"),
        each_expert,
    ),
    "DoRA": (
        DENSE,
        DoRA(rank=2, alpha=4.0),
        ("attention.query", "attention.key", "attention.output", "feed_forward.up"),
        decomposed,
    ),
    "norms": (
        MODEL,
        NormTuning(bias=True),
        ("attention_norm", "feed_forward_norm"),
        scaled,
    ),
    "sparse": (
        MODEL,
        SparseDelta(0.1),
        ("attention.query.weight", "feed_forward.up.weight", "attention_norm.scale"),
        scattered,
    ),
}


def brick_of(name: str) -> tuple[Any, Any, Values, Values]:
    """A model, its brick `one` with random values, and the weights that it stands for."""
    model, settings, sites, update = CASES[name]
    bricks = {"one": BrickConfig(tuple(f"layer.*.{site}" for site in sites), settings)}
    values, weights = random_bricks(bricks, model), parameters_of(model)
    inside = {path.removeprefix("bricks.one."): x.astype(np.float64) for path, x in values.items()}
    inside = {p: x.astype(np.int32) if p.endswith("positions") else x for p, x in inside.items()}
    changed = {path: value.astype(np.float64) for path, value in weights.items()}
    for site in sites:
        for layer in range(3):
            update(changed, inside, f"segments.0.{site}", layer)
    return model, bricks, values, {path: x.astype(np.float32) for path, x in changed.items()}


@pytest.mark.parametrize("name", CASES)
def test_a_model_with_a_brick_is_one_of_other_weights(name: str) -> None:
    model, bricks, values, changed = brick_of(name)
    parameters = parameters_of(model)
    found = logits(model, parameters, plugged(model, bricks, values))
    wanted = logits(model, changed)
    scale = np.abs(wanted).max()
    assert np.abs(wanted - logits(model, parameters)).max() > 1e-2 * scale
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5 * scale)


def test_parameters_of_a_layer_are_sites_of_weights() -> None:
    sites = {site.name: site for site in model_sites(MODEL).layers["0"] if site.hook == "weights"}
    own = "segments.0."
    table = {i.path.removeprefix(own): i.shape[1:] for i in functional_decoder(MODEL).table
             if i.path.startswith(own)}  # fmt: skip
    assert {name: site.shape for name, site in sites.items()} == table


def test_several_sparse_deltas_of_different_sizes_and_layers_add_up() -> None:
    site = "attention.query.weight"
    bricks = {
        "small": BrickConfig((f"layer.1.{site}",), SparseDelta(0.05)),
        "large": BrickConfig((f"layer.*.{site}",), SparseDelta(0.2)),
    }
    values, parameters = random_bricks(bricks), parameters_of(MODEL)
    both = logits(MODEL, parameters, plugged(MODEL, bricks, values))
    path = f"segments.0.{site}"
    changed = {p: x.astype(np.float64) for p, x in parameters.items()}
    for name, layers in {"small": (1,), "large": (0, 1, 2)}.items():
        inside = {leaf: values[f"bricks.{name}.{path}.{leaf}"] for leaf in ("values", "positions")}
        for index, layer in enumerate(layers):
            one = {f"{path}.{leaf}": {layer: x[index]} for leaf, x in inside.items()}
            scattered(changed, one, path, layer)
    wanted = logits(MODEL, {p: x.astype(np.float32) for p, x in changed.items()})
    np.testing.assert_allclose(both, wanted, rtol=1e-5, atol=1e-5 * np.abs(wanted).max())


def test_the_same_ids_for_all_choose_sparse_deltas() -> None:
    site = "layer.*.feed_forward.up.weight"
    bricks = {name: BrickConfig((site,), SparseDelta(0.1)) for name in ("one", "two")}
    values, parameters = random_bricks(bricks), parameters_of(MODEL)
    plug = plugged(MODEL, bricks, values)
    alone = logits(MODEL, parameters, plugged(MODEL, {"two": bricks["two"]}, values))
    chosen = logits(MODEL, parameters, plug, brick_ids=plug.ids(["two", "two"]))
    np.testing.assert_allclose(chosen, alone, rtol=1e-6, atol=1e-6)
    none = logits(MODEL, parameters, plug, brick_ids=plug.ids([None, None]))
    np.testing.assert_array_equal(none, logits(MODEL, parameters))


def test_ids_that_differ_or_are_traced_are_refused_at_weights() -> None:
    bricks = {"one": BrickConfig(("layer.*.attention.key.weight",), SparseDelta(0.1))}
    plug = plugged(MODEL, bricks, random_bricks(bricks))
    same, mixed = (jnp.asarray(plug.ids(["one", name])) for name in ("one", None))
    model = functional_decoder(MODEL).bind(initial_parameters(MODEL, jax.random.key(0)))
    message = r"the brick at attention\.key\.weight changes a weight for all tokens"
    with pytest.raises(InputError, match=message):
        model(jnp.asarray(TOKENS), bricks=plug, brick_ids=mixed)
    with pytest.raises(InputError, match=message):
        jax.jit(lambda ids: model(jnp.asarray(TOKENS), bricks=plug, brick_ids=ids).logits)(same)
    weights = jnp.array([[[1.0]], [[0.5]]])
    with pytest.raises(InputError, match=message):
        model(jnp.asarray(TOKENS), bricks=plug, brick_ids=same, brick_weights=weights)


def test_the_difference_of_two_models() -> None:
    base = parameters_of(MODEL)
    random = np.random.default_rng(3)
    tuned = {p: x + random.normal(0.0, 0.1, x.shape).astype(np.float32) for p, x in base.items()}
    tuned = {p: x if p.startswith("segments") else base[p] for p, x in tuned.items()}
    everything = sparse_difference(MODEL, base, tuned, at=["layer.*"], density=1.0)
    plug = plugged(MODEL, {"all": everything.config}, everything.parameters("all", MODEL))
    wanted = logits(MODEL, tuned)
    found = logits(MODEL, base, plug)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5 * np.abs(wanted).max())
    path, site = "segments.0.attention.query.weight", "layer.1.attention.query.weight"
    some = sparse_difference(MODEL, base, tuned, at=[site], density=0.1)
    change = np.abs(tuned[path] - base[path])[1].reshape(-1)
    count = round(0.1 * change.size)
    positions = some.values[f"{site}.positions"]
    assert set(positions) == set(np.argsort(change)[-count:])
    assert (np.diff(positions) > 0).all()
    np.testing.assert_array_equal(np.abs(some.values[f"{site}.values"]), change[positions])


def test_the_table_says_what_is_trained() -> None:
    bricks = {"one": BrickConfig(("layer.*.attention.key.weight",), SparseDelta(0.1))}
    decoder = plugged_decoder(MODEL, bricks)
    path = "bricks.one.segments.0.attention.key.weight"
    assert decoder.table[f"{path}.values"].trained
    assert not decoder.table[f"{path}.positions"].trained
    assert decoder.table.abstract()[f"{path}.positions"].dtype == jnp.int32
