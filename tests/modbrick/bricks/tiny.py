"""A model with bricks of every kind, small enough to be run in many ways."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from modbrick.bricks import (
    IA3,
    Adapter,
    Bias,
    BrickConfig,
    DoRA,
    LoRA,
    NormTuning,
    Prefix,
    Prompt,
    initial_bricks,
)
from modbrick.config import ModelConfig
from modbrick.config.families import moduleformer

MODEL = moduleformer(
    vocabulary=31,
    width=16,
    layers=3,
    heads=2,
    attention_width=8,
    feed_forward_width=16,
    attention_experts=4,
    feed_forward_experts=4,
    router_width=8,
    dtype="float32",
)
BRICKS = {
    "de": BrickConfig(
        ("layer.*.attention.query", "layer.1-2.attention.key", "head"), LoRA(rank=2, alpha=4.0)
    ),
    "law": BrickConfig(("layer.*.attention.query", "layer.*.feed_forward.up"), LoRA(rank=4)),
    "tone": BrickConfig(("layer.0.feed_forward", "layer.2.attention"), Adapter(hidden=4)),
    "gain": BrickConfig(("layer.*.attention.value", "layer.*.feed_forward.hidden"), IA3()),
    "drift": BrickConfig(("layer.*.residual", "embedding"), Bias(strength=0.5)),
    "style": BrickConfig(("layer.*.attention.value", "layer.0.attention.key"), DoRA(rank=2)),
    "each": BrickConfig(
        ("layer.*.attention.output", "layer.*.feed_forward.up"), LoRA(rank=2, pairs="expert")
    ),
    "norms": BrickConfig(("layer.*.attention_norm", "norm"), NormTuning(bias=True)),
    "fore": BrickConfig(("layer.1-2.attention.memory",), Prefix(length=3)),
    "back": BrickConfig(("layer.*.attention.memory",), Prefix(length=2)),
    "ask": BrickConfig(("prompt",), Prompt(length=4)),
    "beg": BrickConfig(("prompt",), Prompt(length=3)),
}
# The same at fewer sites, which compile in a third of the time.
FEW_SITES = {
    "de": BrickConfig(("layer.1-2.attention.query", "head"), LoRA(rank=2, alpha=4.0)),
    "law": BrickConfig(("layer.*.attention.query",), LoRA(rank=4)),
    "tone": BrickConfig(("layer.0-1.feed_forward",), Adapter(hidden=4)),
    "gain": BrickConfig(("layer.*.attention.value", "layer.*.feed_forward.hidden"), IA3()),
    "drift": BrickConfig(("layer.*.residual", "embedding"), Bias(strength=0.5)),
    "style": BrickConfig(("layer.*.attention.value",), DoRA(rank=2)),
    "each": BrickConfig(("layer.*.feed_forward.up",), LoRA(rank=2, pairs="expert")),
    "norms": BrickConfig(("layer.*.attention_norm", "norm"), NormTuning(bias=True)),
    "fore": BrickConfig(("layer.1-2.attention.memory",), Prefix(length=3)),
    "back": BrickConfig(("layer.*.attention.memory",), Prefix(length=2)),
    "ask": BrickConfig(("prompt",), Prompt(length=4)),
    "beg": BrickConfig(("prompt",), Prompt(length=3)),
}


def random_bricks(
    bricks: dict[str, BrickConfig] = BRICKS, model: ModelConfig = MODEL
) -> dict[str, Any]:
    """Values of trained bricks: no array is as it began, but for indices."""
    random = np.random.default_rng(0)
    values = initial_bricks(model, bricks, jax.random.key(1))
    return {
        path: np.asarray(value + random.normal(0.0, 0.1, value.shape), np.float32)
        if value.dtype == np.float32
        else np.asarray(value)
        for path, value in values.items()
    }
