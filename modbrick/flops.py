"""Useful floating-point operations of a model, counted from its config.

One multiplication with its addition is two operations. Counted are the products of active
parameters and of attention over the keys a token can see; not counted are lookups, norms,
activations, and anything that an implementation recomputes or pads.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from jaxtyping import Int32

from modbrick.config import ExpertsConfig, LayerConfig, ModelConfig


def forward_flops(config: ModelConfig, keys_per_token: float) -> dict[str, float]:
    """Returns the operations of one token's forward pass, by part of the model.

    `projections` are those of queries and outputs, which attention experts choose; keys and values
    are shared and a part of their own.

    Args:
      config: the model.
      keys_per_token: mean number of keys that a query sees; (S + 1) / 2 in whole rows of S tokens.
        Windows cut this mean, not each query's number: an upper bound where rows are longer.
    """
    names = ("attention", "projections", "keys_values", "feed_forward", "routers")
    parts = dict.fromkeys(names, 0.0)
    for layer in config.layers:
        for name, value in _layer_flops(layer, config.width, keys_per_token).items():
            parts[name] += value
    return parts | {"head": 2.0 * config.width * config.vocabulary}


def training_flops(config: ModelConfig, keys_per_token: float) -> float:
    """Returns the operations of one token forward and backward: three times the forward pass."""
    return 3.0 * sum(forward_flops(config, keys_per_token).values())


def packed_flops(config: ModelConfig, batch: Mapping[str, Int32[np.ndarray, "B S"]]) -> float:
    """Returns the operations of training on a packed batch; padding counts as none.

    Args:
      config: the model.
      batch: `segment_ids`, 0 on padding, and `positions` within each segment.
    """
    real = batch["segment_ids"] != 0
    tokens = int(real.sum())
    keys_per_token = (batch["positions"] + 1)[real].mean() if tokens else 0.0
    return tokens * training_flops(config, float(keys_per_token))


def _layer_flops(layer: LayerConfig, width: int, keys_per_token: float) -> dict[str, float]:
    attention, feed_forward = layer.attention, layer.feed_forward
    slots = attention.experts.top_k if attention.experts else 1
    chosen = feed_forward.experts.top_k if feed_forward.experts else 1
    if attention.window is not None:
        keys_per_token = min(keys_per_token, attention.window)
    shared = 0 if attention.key_value == "identity" else 2 * attention.key_width
    return {
        "attention": 4.0 * slots * attention.query_width * keys_per_token,
        "projections": 4.0 * width * slots * attention.query_width,
        "keys_values": 2.0 * width * shared,
        "feed_forward": 2.0
        * chosen
        * width
        * feed_forward.hidden
        * (3 if feed_forward.gated else 2),
        "routers": _router_flops(attention.experts, width)
        + _router_flops(feed_forward.experts, width),
    }


def _router_flops(experts: ExpertsConfig | None, width: int) -> float:
    if experts is None:
        return 0.0
    if experts.router.kind == "linear":
        return 2.0 * width * experts.count
    return 2.0 * experts.router.hidden * (width + experts.count)
