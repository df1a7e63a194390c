from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx

from modbrick.config import ModelConfig
from tests.modbrick.layers import oracle
from tests.modbrick.layers.tiny import (
    ATTENTIONS,
    attention_model,
    model_of,
    mostly_verified,
    relative_error,
    run,
    tokens_of,
)

TOKENS = tokens_of(2, 7)
CAPTURE = ("hidden_states", "attention_weights")


# The other forms do all that the plainest does.
@pytest.mark.parametrize("kind", mostly_verified(*ATTENTIONS.keys() - {"stickbreaking"}))
def test_matches_its_definition(kind):
    model = attention_model(kind)
    output = run(model, TOKENS, capture=CAPTURE)
    for row, tokens in enumerate(TOKENS):
        expected = oracle.decode(model, tokens)
        hidden = output.captured["hidden_states"][:, row]
        assert relative_error(hidden, expected["hidden_states"]) < 1e-5
        assert relative_error(output.logits[row], expected["logits"]) < 1e-5
        weights = output.captured["attention_weights"]["0"][0, row]
        assert relative_error(weights, expected["attention_weights"][0]) < 1e-5


@pytest.mark.parametrize(
    ("kind", "without"),
    [
        ("stickbreaking, grouped", {"scale": None}),
        ("stickbreaking, grouped", {"clip": None}),
        ("stickbreaking, strict window", {"window": None}),
        ("stickbreaking, strict window", {"attend_current": True}),
        ("stickbreaking, strict window", {"rope": None}),
        ("softmax, rope", {"kind": "stickbreaking"}),
        ("softmax, rope", {"rope": None}),
    ],
    ids=str,
)
def test_definitions_depend_on_every_option(kind, without):
    """So that to match one is to heed its options."""
    model = attention_model(kind)
    _, parameters = nnx.split(model)
    graph, _ = nnx.split(model_of(with_attention(model.config, **without)))
    other = oracle.decode(nnx.merge(graph, parameters), TOKENS[0])["logits"]
    assert relative_error(other, oracle.decode(model, TOKENS[0])["logits"]) > 1e-3


def with_attention(config: ModelConfig, **changes: Any) -> ModelConfig:
    (segment,) = config.segments
    attention = dataclasses.replace(segment.layer.attention, **changes)
    layer = dataclasses.replace(segment.layer, attention=attention)
    return config.replace(segments=(dataclasses.replace(segment, layer=layer),))


@pytest.mark.verify
def test_every_option_makes_a_difference():
    """Each form of attention gives another result on the same tokens: no option is ignored."""
    changes: list[dict[str, Any]] = [
        {"scale": 0.1},
        {"window": 2},
        {"clip": 0.3},
        {"attend_current": False},
        {"kind": "softmax"},
        {"rope": ATTENTIONS["softmax, rope"].rope},
    ]
    model = attention_model("stickbreaking")
    _, parameters = nnx.split(model)
    results = [run(model, TOKENS).logits]
    for change in changes:
        graph, _ = nnx.split(model_of(with_attention(model.config, **change)))
        results.append(run(nnx.merge(graph, parameters), TOKENS).logits)
    for index, one in enumerate(results):
        for other in results[:index]:
            assert relative_error(one, other) > 1e-3


@pytest.mark.parametrize("kind", ["stickbreaking experts", "softmax experts, window"])
def test_the_order_of_experts_does_not_matter(kind):
    """A bank permuted, and its router's outputs with it, is the same layer."""
    model = attention_model(kind)
    graph, parameters = nnx.split(model)
    order = np.array([2, 0, 3, 1])
    permuted = jax.tree.map(np.asarray, nnx.as_pure(parameters))
    attention = permuted["segments"]["0"]["attention"]
    for name in ("query", "output"):
        attention[name]["weight"] = attention[name]["weight"][:, order]
    router = attention["router"]["output"]
    router["weight"] = router["weight"][..., order]
    expected = run(model, TOKENS, capture=CAPTURE)
    actual = run(nnx.merge(graph, permuted), TOKENS, capture=CAPTURE)
    assert relative_error(actual.logits, expected.logits) < 1e-6
    one, other = (o.router_statistics["segments.0.attention"] for o in (actual, expected))
    np.testing.assert_allclose(one.choices, np.asarray(other.choices)[:, order])
    np.testing.assert_allclose(one.gates, np.asarray(other.gates)[:, order], rtol=1e-5)
    assert len(set(np.asarray(other.choices)[0].tolist())) > 1
