"""Patterns of sites, and which layers they cover."""

from __future__ import annotations

import pytest

from modbrick.bricks import Adapter, BrickConfig, LoRA
from modbrick.bricks.attachment import attachments
from modbrick.config import (
    AttentionConfig,
    ExpertsConfig,
    FeedForwardConfig,
    LayerConfig,
    ModelConfig,
    SegmentConfig,
)
from modbrick.errors import InputError

DENSE = LayerConfig(AttentionConfig(2, 4), FeedForwardConfig(12))
SPARSE = LayerConfig(
    AttentionConfig(2, 4), FeedForwardConfig(12, experts=ExpertsConfig(count=3, top_k=1))
)
MODEL = ModelConfig(11, 8, tuple(map(SegmentConfig, (DENSE, DENSE, SPARSE, DENSE))))


def covered(*patterns: str) -> dict[str, list[str]]:
    found = attachments(MODEL, BrickConfig(patterns, LoRA(rank=2)))
    return {place.path: [place.address(layer) for layer in place.layers] for place in found}


def test_a_pattern_covers_layers_of_every_segment_that_has_the_site() -> None:
    assert covered("layer.1-3.attention.key") == {
        "segments.0.attention.key": ["layer.1.attention.key"],
        "segments.1.attention.key": ["layer.2.attention.key"],
        "segments.2.attention.key": ["layer.3.attention.key"],
    }
    assert covered("layer.*.feed_forward.router").keys() == {"segments.1.feed_forward.router"}
    assert covered("head") == {"decoder.head": []}


def test_a_site_as_a_whole_comes_before_those_inside() -> None:
    assert covered("layer.0.feed_forward").keys() == {"segments.0.feed_forward"}
    inside = {f"segments.0.feed_forward.{name}" for name in ("up", "hidden", "down")}
    assert covered("layer.0.feed_forward.*").keys() == inside


def test_patterns_add_up() -> None:
    assert covered("layer.0.attention.key", "layer.[01].attention.key") == {
        "segments.0.attention.key": ["layer.0.attention.key", "layer.1.attention.key"]
    }


@pytest.mark.parametrize(
    ("pattern", "remark"),
    [
        ("layer.*.attention.querry", "did you mean 'layer.[*].attention.query'"),
        ("layer.7.attention.query", "no site 'layer.7.attention.query'"),
        ("heads", "did you mean 'head'"),
    ],
)
def test_a_pattern_of_no_site_is_named(pattern: str, remark: str) -> None:
    with pytest.raises(InputError, match=remark):
        covered(pattern)


def test_a_kind_may_not_fit_a_site() -> None:
    experts = AttentionConfig(2, 4, experts=ExpertsConfig(count=3, top_k=2))
    model = ModelConfig(11, 8, (SegmentConfig(LayerConfig(experts, FeedForwardConfig(12))),))
    with pytest.raises(InputError, match="serial adapter"):
        attachments(model, BrickConfig(("layer.*.attention.query",), Adapter(hidden=2)))


def test_a_brick_is_somewhere() -> None:
    with pytest.raises(InputError, match="`at` names no site"):
        BrickConfig((), LoRA())
