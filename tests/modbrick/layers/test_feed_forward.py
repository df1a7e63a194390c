from __future__ import annotations

import jax
import numpy as np
import pytest
from flax import nnx

from modbrick.config import ExpertsConfig, FeedForwardConfig, LayerConfig, RouterConfig
from tests.modbrick.layers import oracle
from tests.modbrick.layers.tiny import (
    ATTENTIONS,
    EXPERTS,
    model_config,
    model_of,
    relative_error,
    run,
    tokens_of,
)

TOKENS = tokens_of(2, 7)
CONFIGS = [
    FeedForwardConfig(24, "gelu", bias=True),
    FeedForwardConfig(24, "silu", gated=True, bias=True),
    FeedForwardConfig(12, "gelu_tanh", experts=EXPERTS),
    FeedForwardConfig(
        12,
        "relu_squared",
        gated=True,
        experts=ExpertsConfig(5, 3, RouterConfig(hidden=8), output_bias=True),
    ),
]


def model_with(config: FeedForwardConfig):
    return model_of(model_config(LayerConfig(ATTENTIONS["stickbreaking"], config)))


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: f"{c.activation}, {c.experts}")
def test_matches_its_definition(config):
    model = model_with(config)
    output = run(model, TOKENS)
    for row, tokens in enumerate(TOKENS):
        assert relative_error(output.logits[row], oracle.decode(model, tokens)["logits"]) < 1e-5


def test_the_order_of_experts_does_not_matter():
    model = model_with(CONFIGS[3])
    graph, parameters = nnx.split(model)
    order = np.array([2, 0, 3, 1, 4])
    permuted = jax.tree.map(np.asarray, nnx.as_pure(parameters))
    feed_forward = permuted["segments"]["0"]["feed_forward"]
    for name in ("up", "gate", "down"):
        feed_forward[name]["weight"] = feed_forward[name]["weight"][:, order]
    router = feed_forward["router"]["output"]
    expected = run(model, TOKENS).logits
    # The bank alone is another model; with its router's outputs it is the same.
    assert relative_error(run(nnx.merge(graph, permuted), TOKENS).logits, expected) > 1e-3
    router["weight"] = router["weight"][..., order]
    assert relative_error(run(nnx.merge(graph, permuted), TOKENS).logits, expected) < 1e-6
