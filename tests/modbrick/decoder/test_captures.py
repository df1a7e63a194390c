"""Captures return what the layers computed, and change nothing."""

from __future__ import annotations

import dataclasses

import chex
import jax
import numpy as np
import pytest

from modbrick.decoder.sites import model_sites
from tests.modbrick.layers.tiny import (
    ATTENTIONS,
    DENSE,
    EXPERT_FEED_FORWARD,
    LayerConfig,
    model_config,
    model_of,
    run,
    tokens_of,
)

TOKENS = tokens_of(2, 7)
EXPERTS = LayerConfig(ATTENTIONS["stickbreaking"], EXPERT_FEED_FORWARD)
EVERYTHING = ("hidden_states", "attention_weights", "routing", "sites")
SITES = ("residual", "embedding", "head", "feed_forward.router")


@pytest.fixture(scope="module")
def model():
    return model_of(model_config(DENSE, DENSE, EXPERTS))


def test_hidden_states_are_the_stream_before_and_after_each_layer(model):
    captured = run(model, TOKENS, capture=("hidden_states", *SITES)).captured
    hidden = captured["hidden_states"]
    assert len(hidden) == 4
    np.testing.assert_array_equal(hidden[0], captured["embedding"])
    np.testing.assert_array_equal(hidden[1:3], captured["residual"]["0"])
    np.testing.assert_array_equal(hidden[3:], captured["residual"]["1"])
    np.testing.assert_array_equal(captured["head"], run(model, TOKENS).logits)


def test_capturing_everything_changes_no_bit(model):
    plain = run(model, TOKENS)
    everything = run(model, TOKENS, capture=EVERYTHING)
    chex.assert_trees_all_equal(everything.logits, plain.logits)
    chex.assert_trees_all_equal(everything.router_statistics, plain.router_statistics)


def test_sites_have_the_inputs_and_outputs_that_bricks_would_see(model):
    captured = run(model, TOKENS, capture=EVERYTHING).captured["sites"]
    sites = model_sites(model.config)
    assert set(captured) == {"decoder", *sites.layers}
    for place, listed in {"decoder": sites.decoder, **sites.layers}.items():
        assert set(captured[place]) == {site.name for site in listed}
        for site in listed:
            seen = captured[place][site.name]
            tokens = site.name in ("embedding", "features")
            width = model.config.vocabulary if tokens else seen.inputs.shape[-1]
            assert width == site.input_width
            assert seen.outputs.shape[-1] == site.output_width
    # A site of a layer has one entry for each layer of its segment.
    chex.assert_shape(captured["0"]["feed_forward.up"].outputs, (2, *TOKENS.shape, 24))
    residual = captured["0"]["residual"]
    np.testing.assert_array_equal(residual.inputs, residual.outputs)


def test_a_site_that_only_some_segments_have(model):
    captured = run(model, TOKENS, capture=("hidden_states", *SITES)).captured
    assert set(captured["feed_forward.router"]) == {"1"}


@pytest.mark.parametrize("name", ["hidden", "feed_forward.upp", "attention.router.bias"])
def test_what_nothing_has_cannot_be_captured(model, name):
    with pytest.raises(
        ValueError, match=rf"cannot capture \['{name}'\]: name one of .*hidden_states"
    ):
        run(model, TOKENS, capture=(name,))


def test_sites_are_found_once_for_equal_models():
    config = model_config(DENSE)
    assert model_sites(config) is model_sites(dataclasses.replace(config))


def test_an_iterator_of_names_is_read_once(model):
    named = ("hidden_states", "head")
    captured = jax.eval_shape(lambda: model(TOKENS, capture=iter(named)).captured)
    assert set(captured) == set(named)
