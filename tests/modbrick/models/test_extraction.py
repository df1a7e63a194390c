"""Emergent bricks come out of one model and go into another."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from modbrick.bricks import BrickConfig, Emergent, SparseDelta, initial_bricks, plugged
from modbrick.bricks.folding import folded
from modbrick.checkpoints import Metadata, save_model
from modbrick.decoder.functional import functional_decoder, initial_parameters
from modbrick.errors import InputError
from modbrick.library import read_brick, write_brick
from modbrick.models import extract_brick, fold_model, load_model, open_model
from tests.modbrick.bricks.tiny import MODEL

TOKENS = jnp.asarray([[3, 1, 4, 1, 5]])
ADDRESSES = {
    "layer.1.feed_forward.expert.2": {"feed_forward.up.weight", "feed_forward.down.weight"},
    "layer.2.attention.expert.0": {"attention.query.weight", "attention.output.weight"},
    "layer.0.attention.key": {"attention.key.weight", "attention.key.bias"},
    "layer.0.feed_forward.router": {
        f"feed_forward.router.{name}" for name in ("hidden.weight", "hidden.bias", "output.weight")
    },
    "layer.2": None,
}


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models of one config."""
    folder = tmp_path_factory.mktemp("house")
    for seed, name in enumerate(("one", "other")):
        parameters = initial_parameters(MODEL, jax.random.key(seed))
        save_model(folder / name, parameters, Metadata(MODEL))
    return folder


def weights(path: Path) -> dict[str, np.ndarray]:
    return {name: np.asarray(x) for name, x in open_model(path).read().items()}


@pytest.mark.parametrize("address", ADDRESSES)
def test_it_stands_in_the_place_of_the_other_models_own(
    house: Path, tmp_path: Path, address: str
) -> None:
    brick, manifest = extract_brick(open_model(house / "one"), address, tags=["a"])
    assert manifest.granularity == ("layer" if address == "layer.2" else "neuron group")
    if (sites := ADDRESSES[address]) is not None:
        assert {site.name for site in manifest.sites.values()} == sites
    file = tmp_path / "out.brick"
    write_brick(file, brick, manifest)
    assert read_brick(file)[1].name == address.replace(".", "-")
    # In its own model nothing changes; in the other the weights are those of both.
    own = load_model(house / "one", bricks=[file])(TOKENS).logits
    np.testing.assert_array_equal(own, load_model(house / "one")(TOKENS).logits)
    one, other = weights(house / "one"), weights(house / "other")
    fold_model(
        open_model(house / "other").with_bricks([file], allow_base="any"), tmp_path / "folded"
    )
    layer, *expert = [int(part) for part in address.split(".") if part.isdigit()]
    changed = 0
    for path, value in weights(tmp_path / "folded").items():
        name = path.split(".", 2)[-1]
        place = (layer, *expert)
        covered = path.startswith("segments.") and (sites is None or name in sites)
        expected = other[path].copy()
        if covered:
            expected[place] = one[path][place]
            changed += 1
        np.testing.assert_array_equal(value, expected)
    assert changed >= 2
    beside = load_model(house / "other", bricks=[file], allow_base="any")(TOKENS).logits
    within = load_model(tmp_path / "folded")(TOKENS).logits
    np.testing.assert_allclose(beside, within, rtol=1e-5, atol=1e-6)
    assert not np.allclose(within, load_model(house / "other")(TOKENS).logits, atol=1e-4)


@pytest.mark.parametrize(
    ("address", "complaint"),
    [
        ("layer.7", "covers no parameter"),
        ("layer.*.feed_forward.expert.1", "covers 3 layers"),
        ("layer.1.feed_forward.expert.1-2", "covers several experts"),
        ("head", "is not in a layer"),
    ],
)
def test_an_address_is_of_one_brick(house: Path, address: str, complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        extract_brick(open_model(house / "one"), address)


def test_of_several_in_one_place_the_last_and_that_of_an_expert_count(house: Path) -> None:
    one, other = open_model(house / "one"), open_model(house / "other")
    whole, _ = extract_brick(one, "layer.1.feed_forward.expert")
    expert, _ = extract_brick(other, "layer.1.feed_forward.expert.2")
    path = "segments.0.feed_forward.up.weight"
    want = np.asarray(one.read(paths=[path])[path]).copy()
    want[1, 2] = np.asarray(other.read(paths=[path])[path])[1, 2]
    for bricks in ({"a": whole, "b": expert}, {"b": expert, "a": whole}):
        found = folded(MODEL, other.read(), bricks)
        np.testing.assert_array_equal(found[path][1], want[1])
        values = {p: x for n, b in bricks.items() for p, x in b.parameters(n, MODEL).items()}
        configs = {name: brick.config for name, brick in bricks.items()}
        model = functional_decoder(MODEL).bind(other.read())
        within = functional_decoder(MODEL).bind(
            other.read() | {p: jnp.asarray(x) for p, x in found.items()}
        )
        np.testing.assert_allclose(
            model(TOKENS, bricks=plugged(MODEL, configs, values)).logits,
            within(TOKENS).logits,
            rtol=1e-5,
            atol=1e-6,
        )


def test_none_is_new_and_experts_are_counted() -> None:
    at = ("layer.0.feed_forward.up.weight",)
    with pytest.raises(InputError, match="is taken out of a model"):
        initial_bricks(MODEL, {"a": BrickConfig(at, Emergent(1))}, jax.random.key(0))
    with pytest.raises(InputError, match="has 4 experts, none of number 4"):
        initial_bricks(MODEL, {"a": BrickConfig(at, Emergent(4))}, jax.random.key(0))
    initial_bricks(MODEL, {"a": BrickConfig(at, SparseDelta(0.1))}, jax.random.key(0))
