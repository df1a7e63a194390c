"""Bricks in the weights compute what they compute beside them."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from modbrick.bricks import (
    IA3,
    Adapter,
    Bias,
    Brick,
    BrickConfig,
    DoRA,
    LoRA,
    NormTuning,
    SparseDelta,
    initial_bricks,
    plugged,
)
from modbrick.bricks.folding import folded
from modbrick.config import ModelConfig
from modbrick.config.families import dense
from modbrick.decoder.functional import functional_decoder, initial_parameters
from modbrick.errors import InputError
from tests.modbrick.bricks.tiny import MODEL

EXPERTS = dataclasses.replace(MODEL, embedding_multiplier=3.0)
TIED = dataclasses.replace(MODEL, tied_head=True)
DENSE = dense(vocabulary=31, width=16, layers=3, heads=2, feed_forward_width=24, dtype="float32")
BIASED = dataclasses.replace(
    DENSE,
    tied_head=False,
    logit_multiplier=0.5,
    segments=tuple(
        dataclasses.replace(
            segment,
            layer=dataclasses.replace(
                segment.layer,
                attention=dataclasses.replace(
                    segment.layer.attention, biases=("query", "key", "value", "output")
                ),
                feed_forward=dataclasses.replace(segment.layer.feed_forward, bias=True),
            ),
        )
        for segment in DENSE.segments
    ),
)
LINEAR = ("layer.*.feed_forward.up", "layer.*.feed_forward.down")
PROJECTIONS = ("layer.*.attention.query", "layer.1-2.attention.output", *LINEAR)
HIDDEN = "layer.*.feed_forward.hidden"
CASES: dict[str, tuple[ModelConfig, dict[str, BrickConfig]]] = {
    "lora in banks": (
        EXPERTS,
        {"a": BrickConfig(PROJECTIONS, LoRA(rank=2, alpha=4.0))},
    ),
    "ia3 in banks": (
        EXPERTS,
        {"a": BrickConfig((*PROJECTIONS, "layer.*.attention.value", HIDDEN), IA3())},
    ),
    "outside": (EXPERTS, {"a": BrickConfig(("embedding", "head"), LoRA(rank=3))}),
    "dense with biases": (
        BIASED,
        {
            "shift": BrickConfig(("layer.*.attention.*", *LINEAR), Bias(strength=0.5)),
            "gain": BrickConfig(("layer.*.attention.*", HIDDEN, "head"), IA3()),
            "low": BrickConfig(("layer.*.attention.*", *LINEAR, "head"), LoRA(rank=2)),
            "more": BrickConfig(("layer.0.attention.query",), IA3()),
        },
    ),
    "experts, norms and weights": (
        EXPERTS,
        {
            "each": BrickConfig(PROJECTIONS, LoRA(rank=2, alpha=3.0, pairs="expert")),
            "norms": BrickConfig(("layer.*", "norm"), NormTuning(bias=True)),
            "few": BrickConfig(("layer.*.attention.*.weight", "layer.1.*"), SparseDelta(0.1)),
        },
    ),
    "two doras between others": (
        BIASED,
        {
            "gain": BrickConfig(("layer.*.attention.*",), IA3()),
            "one": BrickConfig(("layer.*.attention.*", *LINEAR, "head"), DoRA(rank=2, alpha=3.0)),
            "low": BrickConfig(("layer.*.attention.*",), LoRA(rank=2)),
            "few": BrickConfig(("layer.*.attention.*.weight",), SparseDelta(0.1)),
            "two": BrickConfig(("layer.*.attention.*",), DoRA(rank=3)),
        },
    ),
}


def trained(model: ModelConfig, configs: dict[str, BrickConfig]) -> dict[str, Any]:
    random = np.random.default_rng(0)
    values = initial_bricks(model, configs, jax.random.key(1))
    return {
        path: np.asarray(value + random.normal(0.0, 0.3, value.shape), np.float32)
        if value.dtype == np.float32
        else np.asarray(value)
        for path, value in values.items()
    }


def parameters_of(model: ModelConfig) -> dict[str, Any]:
    """Initial weights with biases that are not zero."""
    random = np.random.default_rng(1)
    return {
        path: np.asarray(x) + random.normal(0.0, 0.1, x.shape).astype(np.float32)
        for path, x in initial_parameters(model, jax.random.key(0)).items()
    }


@pytest.mark.parametrize("name", CASES)
def test_a_folded_model_computes_what_it_computed_with_its_bricks(name: str) -> None:
    model, configs = CASES[name]
    parameters, values = parameters_of(model), trained(model, configs)
    bricks = {n: Brick.of_parameters(n, c, model, values) for n, c in configs.items()}
    replaced = folded(model, parameters, bricks)
    decoder, tokens = functional_decoder(model), jnp.asarray([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])

    @jax.jit
    def both(parameters: Any, replaced: Any, plug: Any) -> tuple[Any, Any, Any]:
        base = decoder.bind(parameters)
        within = decoder.bind({**parameters, **replaced})
        return (base(tokens, bricks=plug).logits, within(tokens).logits, base(tokens).logits)

    beside, within, without = both(parameters, replaced, plugged(model, configs, values))
    assert np.abs(beside - without).max() > 0.05 * np.abs(without).max()
    np.testing.assert_allclose(within, beside, rtol=1e-5, atol=1e-5 * float(np.abs(beside).max()))
    for path, value in replaced.items():
        assert value.dtype == parameters[path].dtype
        touched = np.asarray(value != parameters[path]).reshape(len(value), -1).any(1)
        if name == "lora in banks" and "output" in path:
            assert touched.tolist() == [False, True, True], "layers without a brick keep their bits"


@pytest.mark.parametrize(
    ("model", "at", "settings", "complaint"),
    [
        (EXPERTS, "layer.1.feed_forward.down", Adapter(hidden=2), "an adapter is no linear map"),
        (EXPERTS, "layer.0.residual", LoRA(rank=2), "layer.0.residual has no weight of its own"),
        (EXPERTS, "layer.0.attention.query", Bias(), "layer.0.attention.query, which has none"),
        (EXPERTS, "layer.0.feed_forward.hidden", Bias(), "only a scale can be folded at layer.0"),
        (TIED, "embedding", LoRA(rank=2), "embedding has no weight of its own"),
        (TIED, "head", IA3(), "head has no weight of its own"),
    ],
)
def test_what_cannot_be_folded_is_named(
    model: ModelConfig, at: str, settings: Any, complaint: str
) -> None:
    configs = {"new": BrickConfig((at,), settings)}
    brick = Brick.of_parameters("new", configs["new"], model, trained(model, configs))
    with pytest.raises(InputError, match=f"brick new cannot be folded: .*{complaint}"):
        folded(model, parameters_of(model), {"new": brick})
