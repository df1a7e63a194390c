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
    NormConfig,
    RopeConfig,
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


def dense(
    *,
    vocabulary: int,
    width: int,
    layers: int,
    heads: int,
    feed_forward_width: int,
    activation: Activation = "gelu_tanh",
    context: int = 1024,
    dtype: Literal["float32", "bfloat16"] = "bfloat16",
) -> ModelConfig:
    """A ModuleFormer without its experts: what one with experts is to be compared with.

    Stick-breaking attention whose keys and values are projected, without biases, and a feed-forward
    layer without gate or bias; norms, embedding and head as in `moduleformer`. With K experts of a
    ModuleFormer as wide as the model, K/2 times its query and output products are these four
    projections.

    Args:
      vocabulary: V.
      width: D, divided among the heads.
      layers: L.
      heads: of attention.
      feed_forward_width: hidden width, F.
      activation: of the feed-forward layers.
      context: see `ModelConfig`, as the following.
      dtype: of the computation.
    """
    if heads < 1 or width % heads:
        raise InputError(f"width {width} does not divide into {heads} heads")
    attention = AttentionConfig(heads=heads, head_width=width // heads)
    feed_forward = FeedForwardConfig(hidden=feed_forward_width, activation=activation)
    return ModelConfig(
        vocabulary=vocabulary,
        width=width,
        segments=(SegmentConfig(LayerConfig(attention, feed_forward), layers),),
        context=context,
        dtype=dtype,
    )


def jetmoe(
    *,
    vocabulary: int,
    width: int,
    layers: int,
    heads: int,
    head_width: int,
    feed_forward_width: int,
    experts: int,
    top_k: int = 2,
    context: int = 4096,
    dtype: Literal["float32", "bfloat16"] = "bfloat16",
) -> ModelConfig:
    """A JetMoE (arXiv 2404.07413): softmax attention experts and gated feed-forward experts.

    Routers are linear, and the gates of the chosen experts sum to one; each bank has one output
    bias. The head is the embedding.

    Args:
      vocabulary: V.
      width: D.
      layers: L.
      heads: of each attention expert, and of the keys and values that all share.
      head_width: of each head.
      feed_forward_width: hidden width of a feed-forward expert, F.
      experts: of each bank.
      top_k: experts per token.
      context: see `ModelConfig`, as the following.
      dtype: of the computation.
    """
    router = RouterConfig(kind="linear", gates="renormalised")
    bank = ExpertsConfig(experts, top_k, router, output_bias=True)
    norm = NormConfig("rms", epsilon=1e-6, bias=False)
    attention = AttentionConfig(
        heads=heads, head_width=head_width, kind="softmax", rope=RopeConfig(), experts=bank
    )
    feed_forward = FeedForwardConfig(
        hidden=feed_forward_width, activation="silu", gated=True, experts=bank
    )
    return ModelConfig(
        vocabulary=vocabulary,
        width=width,
        segments=(SegmentConfig(LayerConfig(attention, feed_forward, norm), layers),),
        norm=norm,
        context=context,
        tied_head=True,
        dtype=dtype,
        initial_scale=0.01,
        expert_initialiser="normal",
    )


def mixtral(
    *,
    vocabulary: int,
    width: int,
    layers: int,
    heads: int,
    key_value_heads: int,
    feed_forward_width: int,
    experts: int,
    top_k: int = 2,
    context: int = 32768,
    rope_base: float = 1e6,
    dtype: Literal["float32", "bfloat16"] = "bfloat16",
) -> ModelConfig:
    """A Mixtral (arXiv 2401.04088): dense softmax attention, gated feed-forward experts.

    Routers are linear, and the gates of the chosen experts sum to one.

    Args:
      vocabulary: V.
      width: D, divided among the heads.
      layers: L.
      heads: query heads.
      key_value_heads: heads of keys and values.
      feed_forward_width: hidden width of an expert, F.
      experts: of each layer.
      top_k: experts per token.
      context: see `ModelConfig`.
      rope_base: of the rotary positions.
      dtype: see `ModelConfig`.
    """
    if heads < 1 or width % heads:
        raise InputError(f"width {width} does not divide into {heads} heads")
    router = RouterConfig(kind="linear", gates="renormalised")
    norm = NormConfig("rms", epsilon=1e-5, bias=False)
    attention = AttentionConfig(
        heads=heads,
        head_width=width // heads,
        kind="softmax",
        key_value_heads=key_value_heads,
        rope=RopeConfig(base=rope_base),
    )
    feed_forward = FeedForwardConfig(
        hidden=feed_forward_width,
        activation="silu",
        gated=True,
        experts=ExpertsConfig(experts, top_k, router),
    )
    return ModelConfig(
        vocabulary=vocabulary,
        width=width,
        segments=(SegmentConfig(LayerConfig(attention, feed_forward, norm), layers),),
        norm=norm,
        context=context,
        dtype=dtype,
        expert_initialiser="normal",
    )
