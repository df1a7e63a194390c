from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from modbrick.config import (
    AttentionConfig,
    FeedForwardConfig,
    LayerConfig,
    RouterConfig,
    SegmentConfig,
)
from modbrick.decoder.decoder import Decoder
from modbrick.execution import ExecutionConfig
from tests.modbrick.layers import oracle
from tests.modbrick.layers.tiny import (
    ATTENTIONS,
    DENSE,
    DENSE_FEED_FORWARD,
    EXPERT_FEED_FORWARD,
    EXPERTS,
    SPARSE,
    model_config,
    model_of,
    relative_error,
    run,
    tokens_of,
)

pytestmark = pytest.mark.usefixtures("quick_compilation")

TOKENS = tokens_of(2, 7)


def test_scanned_layers_run_in_order():
    """Against layers run one by one, and against an unrolled scan."""
    layer = LayerConfig(ATTENTIONS["stickbreaking"], DENSE_FEED_FORWARD)
    config = model_config(layer, layer, layer)
    assert [segment.repeats for segment in config.segments] == [3]
    scanned = model_of(config)
    logits = run(scanned, TOKENS).logits
    assert relative_error(logits[0], oracle.decode(scanned, TOKENS[0])["logits"]) < 1e-5
    unrolled = model_of(config, ExecutionConfig(unroll=3))
    assert relative_error(run(unrolled, TOKENS).logits, logits) < 1e-6


def test_initial_values_depend_on_the_absolute_layer_only():
    """However layers are segmented; all widths are equal, so that few random shapes compile."""
    one = LayerConfig(AttentionConfig(2, 8), FeedForwardConfig(16))
    other = dataclasses.replace(one, attention=AttentionConfig(2, 8, window=4))

    def initial(*layers):
        config = model_config(*layers).replace(vocabulary=16)
        return oracle.parameters_of(Decoder(config, key=jax.random.key(5)))

    whole, parted = initial(one, one, one), initial(one, other, one)
    stacked = [name for name in whole if name.startswith("segments.0.")]
    assert len(stacked) == 10
    for name in stacked:
        rest = name.removeprefix("segments.0.")
        for layer in range(3):
            np.testing.assert_array_equal(whole[name][layer], parted[f"segments.{layer}.{rest}"][0])
    weights = [value for name in stacked if name.endswith("weight") for value in whole[name]]
    assert len({value.tobytes() for value in weights}) == len(weights) == 18


def test_layers_sample_their_own_experts():
    sampling = dataclasses.replace(EXPERTS, top_k=1, router=RouterConfig(hidden=8, sample_top_k=1))
    # A stream that no layer changes, and routers that are all alike.
    layer = LayerConfig(
        ATTENTIONS["stickbreaking"],
        dataclasses.replace(EXPERT_FEED_FORWARD, experts=sampling),
        residual_multiplier=0.0,
    )
    model = model_of(model_config(layer, layer))
    graph, parameters = nnx.split(model)
    alike = jax.tree.map(lambda x: x, nnx.as_pure(parameters))
    alike["segments"] = jax.tree.map(
        lambda x: np.repeat(np.asarray(x)[:1], len(x), axis=0), alike["segments"]
    )
    model = nnx.merge(graph, alike)

    def chosen(key):
        keys = None if key is None else jax.random.split(key, len(TOKENS))
        routing = run(model, TOKENS, random_keys=keys, capture=("routing",)).captured["routing"]
        return np.asarray(routing["segments.0.feed_forward"].indices)

    first, again, other = (chosen(jax.random.key(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    assert (first[0] != first[1]).any()
    evaluated = chosen(None)
    np.testing.assert_array_equal(evaluated[0], evaluated[1])
    assert (evaluated != first).any()


@pytest.mark.parametrize(
    "layer",
    [pytest.param(DENSE, marks=pytest.mark.verify, id="dense"), pytest.param(SPARSE, id="experts")],
)
def test_compilation_does_not_grow_with_depth(layer):
    """The program, backward pass included, is as long for 24 layers as for 2."""

    def program(repeats: int) -> str:
        config = dataclasses.replace(model_config(layer), segments=(SegmentConfig(layer, repeats),))
        graph, parameters = nnx.split(nnx.eval_shape(lambda: Decoder(config)))

        def loss(parameters):
            return nnx.merge(graph, parameters)(jnp.asarray(TOKENS)).logits.sum()

        return str(jax.make_jaxpr(jax.value_and_grad(loss))(parameters))

    shallow, deep = program(2), program(24)
    assert "[24," in deep
    assert shallow.count(" = ") == deep.count(" = ")
    assert shallow.count("dot_general") == deep.count("dot_general")
