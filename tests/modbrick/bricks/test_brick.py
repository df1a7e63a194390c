"""A brick apart from a model: out of one's parameters and into another's."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from modbrick.bricks import Brick
from modbrick.config import SegmentConfig
from modbrick.errors import InputError
from tests.modbrick.bricks.tiny import BRICKS, MODEL, random_bricks

VALUES = random_bricks()


@pytest.mark.parametrize("name", BRICKS)
def test_out_and_in_again(name: str) -> None:
    brick = Brick.of_parameters(name, BRICKS[name], MODEL, VALUES)
    again = brick.parameters("other", MODEL)
    assert again.keys() == {
        path.replace(f"bricks.{name}.", "bricks.other.")
        for path in VALUES
        if path.startswith(f"bricks.{name}.")
    }
    for path, value in again.items():
        np.testing.assert_array_equal(
            value, VALUES[path.replace("bricks.other.", f"bricks.{name}.")]
        )


def test_values_are_by_absolute_address() -> None:
    brick = Brick.of_parameters("de", BRICKS["de"], MODEL, VALUES)
    key = VALUES["bricks.de.segments.0.attention.key.down"]
    np.testing.assert_array_equal(brick.values["layer.2.attention.key.down"], key[1])
    assert "layer.0.attention.key.down" not in brick.values
    # The same layers in two segments.
    layer = MODEL.segments[0].layer
    other = dataclasses.replace(layer, residual_multiplier=2.0)
    apart = MODEL.replace(segments=(SegmentConfig(layer), SegmentConfig(other, 2)))
    found = brick.parameters("de", apart)["bricks.de.segments.1.attention.key.down"]
    np.testing.assert_array_equal(found, key)


def test_every_mismatch_is_listed() -> None:
    brick = Brick.of_parameters("de", BRICKS["de"], MODEL, VALUES)
    values = dict(brick.values)
    del values["layer.1.attention.key.up"]
    values["layer.0.attention.value.up"] = np.zeros((2, 8), np.float32)
    values["head.up"] = np.zeros((2, 30), np.float32)
    with pytest.raises(InputError) as caught:
        Brick(brick.config, values).parameters("de", MODEL)
    assert str(caught.value) == (
        "brick de does not fit the model: missing: layer.1.attention.key.up; "
        "unexpected: layer.0.attention.value.up; "
        "head.up: the brick has [2, 30], the model needs [2, 31]"
    )


def test_a_model_without_the_site_is_named() -> None:
    brick = Brick.of_parameters("de", BRICKS["de"], MODEL, VALUES)
    shallow = MODEL.replace(segments=(SegmentConfig(MODEL.segments[0].layer, 1),))
    (remark,) = brick.mismatches(shallow)
    assert "no site 'layer.1-2.attention.key'" in remark


def test_values_are_finite() -> None:
    brick = Brick.of_parameters("gain", BRICKS["gain"], MODEL, VALUES)
    address = "layer.1.attention.value.factor"
    broken = {**brick.values, address: np.full(8, np.nan, np.float32)}
    assert Brick(brick.config, broken).mismatches(MODEL) == [f"{address}: 8 values are not finite"]
