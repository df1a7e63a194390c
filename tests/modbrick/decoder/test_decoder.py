from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from modbrick.config import ExpertsConfig, FeedForwardConfig, LayerConfig, RouterConfig
from modbrick.decoder.functional import parameter_table
from modbrick.layers.context import Bricks
from tests.modbrick.layers import oracle
from tests.modbrick.layers.tiny import (
    ATTENTIONS,
    DENSE,
    DENSE_FEED_FORWARD,
    EXPERT_FEED_FORWARD,
    QUICK,
    SPARSE,
    VOCABULARY,
    WIDTH,
    model_config,
    model_of,
    relative_error,
    run,
    tokens_of,
)

TOKENS = tokens_of(2, 7)
SOFTMAX_EXPERTS = LayerConfig(
    dataclasses.replace(ATTENTIONS["softmax experts, window"], window=None), EXPERT_FEED_FORWARD
)
MODELS = {
    "both": (DENSE, dataclasses.replace(SOFTMAX_EXPERTS, feed_forward=DENSE_FEED_FORWARD)),
    "dense": (DENSE, dataclasses.replace(DENSE, attention=ATTENTIONS["softmax, rope"])),
    "experts": (SPARSE, SOFTMAX_EXPERTS),
}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Offset:
    """A brick that adds to what it finds."""

    value: jax.Array

    def __call__(self, inputs, outputs, choice, offer):
        return outputs + self.value


@pytest.mark.parametrize(
    "name",
    [
        "both",
        pytest.param("dense", marks=pytest.mark.verify),
        pytest.param("experts", marks=pytest.mark.verify),
    ],
)
def test_later_tokens_have_no_influence(name):
    """The gradient of an output with respect to later embeddings is exactly zero."""
    graph, parameters = nnx.split(model_of(model_config(*MODELS[name])))

    @functools.partial(jax.jit, compiler_options=QUICK)
    @jax.grad
    def gradient(offset, index):
        bricks = Bricks(decoder={"embedding": (Offset(offset),)})
        logits = nnx.merge(graph, parameters)(jnp.asarray(TOKENS), bricks=bricks).logits
        return (logits[:, index] * jnp.arange(1.0, VOCABULARY + 1)).sum()

    zero = jnp.zeros((*TOKENS.shape, WIDTH))
    for index in range(TOKENS.shape[1]):
        size = np.linalg.norm(gradient(zero, index), axis=-1)
        assert np.isfinite(size).all()
        np.testing.assert_array_equal(size[:, index + 1 :], 0.0)
        assert (size[:, : index + 1] > 0).all()


@pytest.fixture(scope="module")
def sparse():
    return model_of(model_config(SPARSE, SPARSE, DENSE))


def test_captures_are_what_the_model_computed(sparse):
    output = run(sparse, TOKENS, capture=("hidden_states", "attention_weights", "routing"))
    captured = output.captured
    hidden = captured["hidden_states"]
    assert hidden.shape == (4, *TOKENS.shape, WIDTH)
    assert {name: w.shape for name, w in captured["attention_weights"].items()} == {
        "0": (2, 2, 4, 7, 7),
        "1": (1, 2, 4, 7, 7),
    }
    expected = oracle.decode(sparse, TOKENS[1])
    assert relative_error(hidden[:, 1], expected["hidden_states"]) < 1e-5
    assert relative_error(output.logits[1], expected["logits"]) < 1e-5
    for layer, weights in enumerate(expected["attention_weights"]):
        segment, index = ("0", layer) if layer < 2 else ("1", 0)
        actual = captured["attention_weights"][segment][index, 1]
        assert relative_error(actual, weights) < 1e-5
    names = {"segments.0.attention", "segments.0.feed_forward"}
    assert set(captured["routing"]) == set(output.router_statistics) == names
    for name, routing in captured["routing"].items():
        statistics = output.router_statistics[name]
        assert routing.indices.shape == routing.gates.shape == (2, *TOKENS.shape, 2)
        for layer in range(2):
            counts = np.bincount(np.ravel(routing.indices[layer]), minlength=4)
            np.testing.assert_array_equal(statistics.choices[layer], counts)
            gates = np.bincount(
                np.ravel(routing.indices[layer]), np.ravel(routing.gates[layer]), minlength=4
            )
            np.testing.assert_allclose(statistics.gates[layer], gates, rtol=1e-5)


def test_nothing_is_captured_unasked(sparse):
    output = jax.eval_shape(lambda: sparse(jnp.asarray(TOKENS)))
    assert output.captured == {}
    assert output.cache is None


def test_unknown_captures_and_wrong_shapes_are_refused(sparse):
    with pytest.raises(ValueError, match="cannot capture \\['hiden'\\]"):
        run(sparse, TOKENS, capture=("hiden",))
    with pytest.raises(ValueError, match=r"attention_mask has shape \(2, 3\), tokens \(2, 7\)"):
        run(sparse, TOKENS, attention_mask=np.ones((2, 3), bool))


def test_multipliers_and_a_tied_head():
    layer = dataclasses.replace(DENSE, residual_multiplier=0.3)
    options = {"embedding_multiplier": 3.0, "logit_multiplier": 0.2}
    config = model_config(layer, tied_head=True, **options)
    assert not [info for info in parameter_table(config) if info.path.startswith("head")]
    model = model_of(config)
    expected = oracle.decode(model, TOKENS[0])
    output = run(model, TOKENS, capture=("hidden_states",))
    assert relative_error(output.logits[0], expected["logits"]) < 1e-5
    assert relative_error(output.captured["hidden_states"][:, 0], expected["hidden_states"]) < 1e-5
    embedding = np.asarray(model.embedding[...])
    np.testing.assert_allclose(
        output.captured["hidden_states"][0], 3 * embedding[TOKENS], rtol=1e-6
    )
    logits = 0.2 * np.asarray(output.hidden) @ embedding.T
    assert relative_error(output.logits, logits) < 1e-6


EVERY = ExpertsConfig(2, 2, RouterConfig(hidden=8))
EVERY_HEAD = dataclasses.replace(ATTENTIONS["stickbreaking experts"], experts=EVERY)


@pytest.mark.parametrize(
    "layers",
    [
        (LayerConfig(EVERY_HEAD, DENSE_FEED_FORWARD),),
        pytest.param(
            (LayerConfig(EVERY_HEAD, FeedForwardConfig(12, experts=EVERY)), DENSE),
            marks=pytest.mark.verify,
        ),
    ],
    ids=["experts", "experts everywhere, dense"],
)
def test_bfloat16_is_close_to_float32(layers):
    """All experts are chosen, so that rounding cannot change the choice."""
    config = model_config(*layers)
    wide = model_of(config)
    narrow = model_of(config.replace(dtype="bfloat16"))  # the same values
    assert {x.dtype for x in jax.tree.leaves(nnx.state(narrow))} == {jnp.dtype("float32")}
    expected, actual = run(wide, TOKENS), run(narrow, TOKENS)
    assert expected.hidden.dtype == jnp.float32
    assert actual.hidden.dtype == jnp.bfloat16
    assert actual.logits.dtype == jnp.float32
    assert 1e-5 < relative_error(actual.logits, expected.logits) < 3e-2
    for name, statistics in actual.router_statistics.items():
        for field in dataclasses.fields(statistics):
            value = getattr(statistics, field.name)
            assert value.dtype == jnp.float32
            wide_value = getattr(expected.router_statistics[name], field.name)
            np.testing.assert_allclose(value, wide_value, rtol=5e-2)


def test_parameter_table_describes_the_parameters(sparse):
    table = parameter_table(sparse.config)
    actual = oracle.parameters_of(sparse)
    assert {info.path: info.shape for info in table} == {k: v.shape for k, v in actual.items()}
    assert all(len(info.axes) == len(info.shape) for info in table)
    assert table["segments.0.feed_forward.up.weight"].axes == (
        "layer",
        "expert",
        "width",
        "hidden",
    )
    assert {info.first_layer for info in table if info.path.startswith("segments.1.")} == {2}
    assert "layer.2.attention.query" in table.bricks()
