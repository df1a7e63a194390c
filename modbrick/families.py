"""Families of models from the literature, as values of `ModelConfig`."""

from __future__ import annotations

from typing import Literal

from modbrick.config import (
    Activation,
    AttentionConfig,
    ExpertsConfig,
    FeedForwardConfig,
    LayerConfig,
    ModelConfig,
    RouterConfig,
    SegmentConfig,
)
from modbrick.errors import InputError


def moduleformer(
    *,
    vocabulary: int,
    width: int,
    layers: int,
    heads: int,
    attention_width: int,
    feed_forward_width: int,
    attention_experts: int,
    feed_forward_experts: int,
    top_k: int = 2,
    feed_forward_top_k: int | None = None,
    router: Literal["mlp", "linear", "gmm"] = "mlp",
    router_width: int = 256,
    sample_top_k: int = 0,
    activation: Activation = "gelu_tanh",
    context: int = 1024,
    dtype: Literal["float32", "bfloat16"] = "bfloat16",
    router_statistics: Literal["valid", "all"] = "valid",
    expert_initialiser: Literal["uniform_fan_in", "normal"] = "uniform_fan_in",
) -> ModelConfig:
    """A ModuleFormer (arXiv 2306.04640): stick-breaking attention experts and feed-forward experts.

    As in the original code, one head as wide as the model has identity keys and values (the
    released MoLM models); otherwise they are projected, with biases.

    Args:
      vocabulary: V.
      width: D.
      layers: L.
      heads: of each attention expert.
      attention_width: of an expert's heads together.
      feed_forward_width: hidden width of a feed-forward expert, F.
      attention_experts: attention experts of a layer.
      feed_forward_experts: feed-forward experts of a layer.
      top_k: experts per token.
      feed_forward_top_k: those of the feed-forward bank, if they differ.
      router: kind of router, see `RouterConfig`.
      router_width: its hidden width.
      sample_top_k: how many of the top k are sampled in training.
      activation: of the feed-forward experts.
      context: see `ModelConfig`, as the following.
      dtype: of the computation.
      router_statistics: which tokens count.
      expert_initialiser: initial expert weights.
    """
    if heads < 1 or attention_width % heads:
        raise InputError(f"attention_width {attention_width} does not divide into {heads} heads")
    routing = RouterConfig(kind=router, hidden=router_width, sample_top_k=sample_top_k)
    identity = attention_width == width and heads == 1
    attention = AttentionConfig(
        heads=heads,
        head_width=attention_width // heads,
        key_value="identity" if identity else "projected",
        biases=() if identity else ("key", "value"),
        experts=ExpertsConfig(attention_experts, top_k, routing),
    )
    chosen = top_k if feed_forward_top_k is None else feed_forward_top_k
    feed_forward = FeedForwardConfig(
        hidden=feed_forward_width,
        activation=activation,
        experts=ExpertsConfig(feed_forward_experts, chosen, routing),
    )
    return ModelConfig(
        vocabulary=vocabulary,
        width=width,
        segments=(SegmentConfig(LayerConfig(attention, feed_forward), layers),),
        context=context,
        dtype=dtype,
        router_statistics=router_statistics,
        expert_initialiser=expert_initialiser,
    )
