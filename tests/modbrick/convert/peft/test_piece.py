"""Bricks are put together from pieces and taken apart."""

from __future__ import annotations

import pytest

from modbrick.bricks import Brick, BrickConfig, LoRA
from modbrick.config import ModelConfig, SegmentConfig
from modbrick.convert.peft.piece import bricks_of, pieces_of, site_patterns
from modbrick.errors import InputError
from tests.modbrick.convert.peft.adapters import bits, random_brick
from tests.modbrick.convert.peft.adapters import model_of as model


def longer() -> ModelConfig:
    """Six layers in two segments."""
    (segment,) = model("llama").segments
    other = SegmentConfig(model("jetmoe").segments[0].layer, 2)
    return model("llama").replace(segments=(SegmentConfig(segment.layer, 4), other))


def test_pieces_make_the_brick_again() -> None:
    config = BrickConfig(("layer.0-2.attention.query", "layer.*.attention.value"), LoRA(2))
    brick = random_brick(config, longer())
    pieces = list(pieces_of("de", brick, longer()))
    assert len(pieces) == 3 + 6
    assert bits(bricks_of(pieces, longer())) == bits({"de": brick})


def test_patterns_cover_runs_of_layers() -> None:
    def at(*layers: int) -> list[str]:
        return [f"layer.{layer}.attention.key" for layer in layers]

    assert site_patterns(at(*range(6)), longer()) == ("layer.*.attention.key",)
    assert site_patterns(at(5, 0, 1, 3), longer()) == (
        "layer.0-1.attention.key",
        "layer.3.attention.key",
        "layer.5.attention.key",
    )
    # All layers that have one.
    routers = [f"layer.{layer}.feed_forward.router" for layer in (4, 5)]
    assert site_patterns([*routers, "head"], longer()) == ("head", "layer.*.feed_forward.router")


def test_a_brick_that_does_not_fit_is_refused() -> None:
    brick = Brick(BrickConfig(("layer.*.attention.query",), LoRA(2)), {})
    with pytest.raises(InputError, match=r"brick de does not fit the model: missing: layer\.0"):
        list(pieces_of("de", brick, model("llama")))
