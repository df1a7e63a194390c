"""Bricks in the table of parameters, and their values before training."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from modbrick.bricks import (
    IA3,
    Adapter,
    Bias,
    BrickConfig,
    DoRA,
    Emergent,
    Knowledge,
    LoRA,
    Modality,
    NormTuning,
    Prefix,
    Prompt,
    Settings,
    SparseDelta,
    initial_bricks,
)
from modbrick.bricks.functional import is_brick, plugged_decoder
from modbrick.bricks.table import brick_infos, large_ranks
from modbrick.config import SegmentConfig
from modbrick.errors import InputError
from modbrick.parallel.rules import parameter_spec
from modbrick.parameters import Partition
from modbrick.schema import kinds
from tests.modbrick.bricks.tiny import BRICKS, MODEL

KEY = jax.random.key(0)


def test_addresses_are_absolute() -> None:
    infos = {info.path: info for info in brick_infos(MODEL, BRICKS)}
    key = infos["bricks.de.segments.0.attention.key.down"]  # of layers 1 and 2
    assert key.shape == (2, 16, 2)
    assert key.address(layer=0) == "brick.de.layer.1.attention.key.down"
    assert infos["bricks.de.decoder.head.up"].address() == "brick.de.head.up"


def test_layers_need_not_follow_one_another() -> None:
    brick = {"odd": BrickConfig(("layer.[02].attention.query",), LoRA(rank=2))}
    (info, _) = brick_infos(MODEL, brick)
    assert [info.address(layer=layer) for layer in (0, 1)] == [
        "brick.odd.layer.0.attention.query.down",
        "brick.odd.layer.2.attention.query.down",
    ]
    table = plugged_decoder(MODEL, brick).table
    (mask, _) = table.select(["brick.odd.layer.2"]).values()
    assert mask.tolist() == [False, True]
    with pytest.raises(InputError, match="covers no parameter"):
        table.select(["brick.odd.layer.1"])


def test_a_brick_can_be_trained_alone() -> None:
    table = plugged_decoder(MODEL, BRICKS).table
    partition = Partition(table, trainable=["brick.de", "brick.gain"])
    assert all(path.startswith(("bricks.de.", "bricks.gain.")) for path in partition.trainable)
    assert sum(not is_brick(path) for path in partition.frozen) == len(
        plugged_decoder(MODEL, {}).table
    )


def test_values_depend_on_name_and_site_only() -> None:
    alone = initial_bricks(MODEL, {"law": BRICKS["law"]}, KEY)
    assert alone.keys() < initial_bricks(MODEL, BRICKS, KEY).keys()
    for path, value in alone.items():
        np.testing.assert_array_equal(initial_bricks(MODEL, BRICKS, KEY)[path], value)
    other = initial_bricks(MODEL, {"other": BRICKS["law"]}, KEY)
    down = "segments.0.attention.query.down"
    assert not np.array_equal(other[f"bricks.other.{down}"], alone[f"bricks.law.{down}"])
    layers = alone[f"bricks.law.{down}"]
    assert not np.array_equal(layers[0], layers[1])


def test_a_layer_gets_the_same_values_however_layers_are_segmented() -> None:
    layer = MODEL.segments[0].layer
    apart = MODEL.replace(
        segments=(
            SegmentConfig(layer),
            SegmentConfig(dataclasses.replace(layer, residual_multiplier=2.0), 2),
        )
    )
    brick = {"law": BRICKS["law"]}
    whole = initial_bricks(MODEL, brick, KEY)["bricks.law.segments.0.attention.query.down"]
    parts = initial_bricks(apart, brick, KEY)
    for segment, layers in (("0", slice(0, 1)), ("1", slice(1, 3))):
        part = parts[f"bricks.law.segments.{segment}.attention.query.down"]
        np.testing.assert_array_equal(part, whole[layers])


@pytest.mark.parametrize("name", ["", "a.b", "german brick", "de+law"])
def test_names_stand_in_addresses(name: str) -> None:
    with pytest.raises(InputError, match="is no name of a brick"):
        brick_infos(MODEL, {name: BrickConfig(("head",), LoRA())})


def test_a_rank_above_the_width_is_named_once_a_brick() -> None:
    """At the site where most of it is too much."""
    wide = {
        "wide": BrickConfig(("layer.*.attention.*", "head"), LoRA(rank=20)),
        "fits": BrickConfig(("layer.*.attention.query",), LoRA(rank=4)),
    }
    (line,) = large_ranks(MODEL, wide)
    assert line == "brick wide has a rank of 20 at layer.0.attention.router, where 4 can do as much"


EVERY_KIND = {
    "lora": BrickConfig(("layer.0.attention.query",), LoRA(pairs="expert")),
    "dora": BrickConfig(("layer.0.attention.key",), DoRA()),
    "adapter": BrickConfig(("layer.0.attention",), Adapter()),
    "ia3": BrickConfig(("layer.0.attention.key",), IA3()),
    "bias": BrickConfig(("layer.0.attention.key",), Bias()),
    "norm": BrickConfig(("norm",), NormTuning(bias=True)),
    "sparse": BrickConfig(("layer.0.attention.key.weight",), SparseDelta()),
    "emergent": BrickConfig(("layer.0.feed_forward.up.weight",), Emergent()),
    "prefix": BrickConfig(("layer.0.attention.memory",), Prefix()),
    "prompt": BrickConfig(("prompt",), Prompt()),
    "modality": BrickConfig(("features",), Modality(1, 4, queries=2)),
    "knowledge": BrickConfig(("features",), Knowledge(1, 4)),
}


@pytest.mark.parametrize("kind", kinds(Settings))
def test_a_mesh_knows_every_axis_of_every_kind(kind: str) -> None:
    for info in brick_infos(MODEL, {kind: EVERY_KIND[kind]}):
        assert len(parameter_spec(info.axes)) == len(info.shape)
