from __future__ import annotations

import functools

import jax
import numpy as np
import pytest

from modbrick.bricks import LoRA, attach
from modbrick.config import (
    AttentionConfig,
    ExpertsConfig,
    FeedForwardConfig,
    LayerConfig,
    ModelConfig,
    SegmentConfig,
)
from modbrick.errors import InputError
from modbrick.layers.context import SiteBricks

DENSE = LayerConfig(AttentionConfig(2, 4), FeedForwardConfig(12))
SPARSE = LayerConfig(
    AttentionConfig(2, 4), FeedForwardConfig(12, experts=ExpertsConfig(count=3, top_k=1))
)


def model(*layers: LayerConfig) -> ModelConfig:
    return ModelConfig(11, 8, tuple(map(SegmentConfig, layers)))


def lora(key, site):
    return LoRA.initial(key, site.input_width, site.output_width, rank=2)


make = functools.partial(attach, key=jax.random.key(0))


def at(sites: SiteBricks, name: str) -> LoRA:
    (brick,) = sites[name]
    assert isinstance(brick, LoRA)
    return brick


def test_bricks_are_stacked_over_the_layers_that_have_the_site():
    bricks = make(
        model(DENSE, DENSE, SPARSE),
        {"layer.*.attention.query": lora, "layer.*.feed_forward.up": lora, "head": lora},
    )
    assert set(bricks.segments["0"]) == {"attention.query", "feed_forward.up"}
    assert set(bricks.segments["1"]) == {"attention.query"}
    assert at(bricks.segments["0"], "feed_forward.up").down.shape == (2, 1, 8, 2)
    assert at(bricks.segments["0"], "feed_forward.up").up.shape == (2, 1, 2, 12)
    assert at(bricks.segments["1"], "attention.query").down.shape == (1, 1, 8, 2)
    assert at(bricks.decoder, "head").up.shape == (1, 2, 11)


def test_a_layer_gets_the_same_brick_however_layers_are_segmented():
    sites = {"layer.*.attention.key": lora}
    whole = at(make(model(DENSE, DENSE, DENSE), sites).segments["0"], "attention.key").down
    parted = make(model(DENSE, SPARSE, DENSE), sites).segments
    for layer, segment in enumerate("012"):
        np.testing.assert_array_equal(at(parted[segment], "attention.key").down[0], whole[layer])
    assert not np.array_equal(whole[0], whole[1])


def test_sites_draw_keys_of_their_own():
    bricks = make(model(DENSE), {"layer.*.attention.key": lora, "layer.*.attention.value": lora})
    key, value = (at(bricks.segments["0"], f"attention.{n}").down for n in ("key", "value"))
    assert not np.array_equal(key, value)


@pytest.mark.parametrize(
    ("site", "remark"),
    [
        ("layer.*.attention.querry", "did you mean 'layer.*.attention.query'"),
        ("layer.*.feed_forward.router", "no site"),
        ("heads", "did you mean 'head'"),
    ],
)
def test_a_site_that_no_layer_has_is_named(site, remark):
    with pytest.raises(InputError, match="no site") as raised:
        make(model(DENSE), {site: lora})
    assert site in str(raised.value)
    assert remark in str(raised.value)
