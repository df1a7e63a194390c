"""Operation counts against what XLA counts for a dense model of the same active size."""

from __future__ import annotations

import numpy as np
import pytest

from modbrick.config import (
    AttentionConfig,
    ExpertsConfig,
    FeedForwardConfig,
    LayerConfig,
    ModelConfig,
    RouterConfig,
    SegmentConfig,
)
from modbrick.config.families import moduleformer
from modbrick.flops import forward_flops, packed_flops, training_flops


def dense(**attention: object) -> ModelConfig:
    layer = LayerConfig(
        AttentionConfig(heads=4, head_width=16, **attention),  # type: ignore[arg-type]
        FeedForwardConfig(hidden=128, gated=True),
    )
    return ModelConfig(100, 64, (SegmentConfig(layer, 3),))


def test_dense_model_by_hand() -> None:
    parts = forward_flops(dense(key_value_heads=2), keys_per_token=10.0)
    assert parts["projections"] == 3 * 2 * 64 * (64 + 64)
    assert parts["keys_values"] == 3 * 2 * 64 * (32 + 32)
    assert parts["attention"] == 3 * 2 * 2 * 64 * 10
    assert parts["feed_forward"] == 3 * 2 * 3 * 64 * 128
    assert parts["routers"] == 0
    assert parts["head"] == 2 * 64 * 100
    assert training_flops(dense(key_value_heads=2), 10.0) == 3 * sum(parts.values())


def test_a_window_bounds_the_keys() -> None:
    assert forward_flops(dense(window=4), 10.0)["attention"] == 3 * 2 * 2 * 64 * 4


def test_experts_count_as_often_as_they_are_chosen() -> None:
    def model(experts: int, top_k: int) -> ModelConfig:
        return moduleformer(
            vocabulary=100,
            width=64,
            layers=2,
            heads=4,
            attention_width=64,
            feed_forward_width=128,
            attention_experts=experts,
            feed_forward_experts=experts,
            top_k=top_k,
            router="linear",
        )

    two, four = (forward_flops(model(8, k), 10.0) for k in (2, 4))
    assert four["feed_forward"] == 2 * two["feed_forward"]
    assert four["attention"] == 2 * two["attention"]
    more = forward_flops(model(16, 2), 10.0)
    assert more["feed_forward"] == two["feed_forward"]
    assert more["routers"] == 2 * two["routers"] == 2 * 2 * 2 * 2 * 64 * 8


@pytest.mark.parametrize("kind", ["mlp", "gmm"])
def test_routers_with_a_hidden_layer(kind: str) -> None:
    experts = ExpertsConfig(8, 2, RouterConfig(kind=kind, hidden=16))  # type: ignore[arg-type]
    layer = LayerConfig(AttentionConfig(1, 64, experts=experts), FeedForwardConfig(32))
    parts = forward_flops(ModelConfig(10, 64, (SegmentConfig(layer, 1),)), 1.0)
    assert parts["routers"] == 2 * 16 * (64 + 8)


ROUTED = moduleformer(
    vocabulary=37,
    width=16,
    layers=2,
    heads=2,
    attention_width=8,
    feed_forward_width=12,
    attention_experts=3,
    feed_forward_experts=4,
    router_width=8,
)


def packed(lengths: list[int], length: int) -> dict[str, np.ndarray]:
    """One row of documents, padded to `length`."""
    segments, positions = np.zeros((2, 1, length), np.int32)
    segments[0, : sum(lengths)] = np.repeat(np.arange(len(lengths)) + 1, lengths)
    positions[0, : sum(lengths)] = np.concatenate([np.arange(n) for n in lengths])
    return {"segment_ids": segments, "positions": positions}


def test_useful_operations_are_those_of_each_document_on_its_own() -> None:
    lengths = [3, 9, 1, 5]
    apart = [packed_flops(ROUTED, packed([n], n)) for n in lengths]
    assert packed_flops(ROUTED, packed(lengths, 18)) == pytest.approx(sum(apart))
    assert packed_flops(ROUTED, packed(lengths, 40)) == pytest.approx(sum(apart)), "padding is none"
    assert packed_flops(ROUTED, packed([18], 18)) > sum(apart), "more keys are seen"
    assert packed_flops(ROUTED, packed([18], 18)) == pytest.approx(18 * training_flops(ROUTED, 9.5))


def test_a_batch_of_padding_has_no_useful_operations() -> None:
    nothing = np.zeros((2, 4), np.int32)
    assert packed_flops(ROUTED, {"segment_ids": nothing, "positions": nothing}) == 0.0
