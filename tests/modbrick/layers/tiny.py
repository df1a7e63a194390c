"""Tiny models for the tests: every form of attention, and compiled functions to share."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from modbrick.config import (
    AttentionConfig,
    ExpertsConfig,
    FeedForwardConfig,
    LayerConfig,
    ModelConfig,
    NormConfig,
    RopeConfig,
    RouterConfig,
    SegmentConfig,
)
from modbrick.decoder.decoder import Decoder
from modbrick.decoder.output import DecoderOutput
from modbrick.execution import ExecutionConfig
from tests.compilation import QUICK

VOCABULARY, WIDTH = 19, 16
RMS = NormConfig("rms", bias=False)
EXPERTS = ExpertsConfig(4, 2, RouterConfig(hidden=8))
DENSE_FEED_FORWARD = FeedForwardConfig(24, "silu", gated=True)
EXPERT_FEED_FORWARD = FeedForwardConfig(12, experts=EXPERTS)

ATTENTIONS = {
    "stickbreaking": AttentionConfig(2, 8),
    "stickbreaking, grouped": AttentionConfig(
        4,
        4,
        key_value_heads=2,
        biases=("query", "key", "value", "output"),
        query_key_norm=NormConfig(),
        query_key_norm_axis="all",
        clip=0.6,
        scale=0.7,
    ),
    "stickbreaking, strict window": AttentionConfig(
        2, 4, window=3, attend_current=False, rope=RopeConfig(fraction=0.5)
    ),
    "stickbreaking experts": AttentionConfig(
        2, 8, experts=dataclasses.replace(EXPERTS, output_bias=True), biases=("key", "value")
    ),
    "stickbreaking experts, identity": AttentionConfig(
        4, 8, key_value="identity", key_value_heads=2, experts=EXPERTS
    ),
    "softmax, rope": AttentionConfig(
        4,
        4,
        kind="softmax",
        key_value_heads=2,
        rope=RopeConfig(base=100.0),
        query_key_norm=RMS,
        biases=("query",),
    ),
    "softmax experts, window": AttentionConfig(
        4, 4, kind="softmax", key_value_heads=2, window=3, rope=RopeConfig(), experts=EXPERTS
    ),
}

DENSE = LayerConfig(ATTENTIONS["stickbreaking, grouped"], DENSE_FEED_FORWARD)
SPARSE = LayerConfig(ATTENTIONS["stickbreaking experts"], EXPERT_FEED_FORWARD)


def mostly_verified(*tested: str) -> list[Any]:
    """Every form of attention as a parameter: `make test` runs these, `make verify` the others."""
    assert set(tested) < set(ATTENTIONS)
    verify = pytest.mark.verify
    return [kind if kind in tested else pytest.param(kind, marks=verify) for kind in ATTENTIONS]


def model_config(*layers: LayerConfig, **changes: Any) -> ModelConfig:
    """A model of these layers, in float32 if not said otherwise."""
    segments = tuple(map(SegmentConfig, layers))
    return ModelConfig(VOCABULARY, WIDTH, segments, **{"dtype": "float32", **changes})


DEFAULT_EXECUTION = ExecutionConfig()


def model_of(
    config: ModelConfig, execution: ExecutionConfig = DEFAULT_EXECUTION, seed: int = 0
) -> Decoder:
    """A model with random values everywhere, in biases and norms too; much quicker to make."""
    abstract = nnx.eval_shape(lambda: Decoder(config, execution=execution))
    graph, state = nnx.split(abstract)
    random = np.random.default_rng(seed)

    def value(path: tuple[Any, ...], leaf: Any) -> jax.Array:
        centre, spread = (1.0, 0.1) if path[-1].key == "scale" else (0.0, 0.3)
        return jnp.asarray(random.normal(centre, spread, leaf.shape), jnp.float32)

    return nnx.merge(graph, jax.tree_util.tree_map_with_path(value, nnx.as_pure(state)))


def _call(graph: Any, parameters: Any, arguments: dict[str, Any], capture: tuple[str, ...]) -> Any:
    return nnx.merge(graph, parameters)(**arguments, capture=capture)


_run: Any = jax.jit(_call, static_argnames=("graph", "capture"), compiler_options=QUICK)


def run(
    model: Decoder, tokens: Any, *, capture: tuple[str, ...] = (), **arguments: Any
) -> DecoderOutput:
    """Calls the model, compiled once for each model, shape and set of arguments."""
    graph, parameters = nnx.split(model)
    arguments = {name: value for name, value in arguments.items() if value is not None}
    tokens = jnp.asarray(tokens, jnp.int32)
    return _run(graph, nnx.as_pure(parameters), {"tokens": tokens} | arguments, capture)


def tokens_of(batch: int, length: int, seed: int = 0) -> np.ndarray:
    """Random token ids."""
    return np.random.default_rng(seed).integers(0, VOCABULARY, (batch, length)).astype(np.int32)


def relative_error(actual: Any, expected: Any) -> float:
    """Norm of the difference over the norm of what is expected; both must be finite."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape
    assert np.isfinite(actual).all()
    assert np.isfinite(expected).all()
    scale = np.linalg.norm(expected)
    return float(np.linalg.norm(actual - expected) / (scale if scale > 0 else 1.0))


@functools.cache
def attention_model(kind: str) -> Decoder:
    """One layer with a form of attention."""
    return model_of(model_config(LayerConfig(ATTENTIONS[kind], DENSE_FEED_FORWARD)))
