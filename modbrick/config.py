"""What a model is: frozen, validated records, readable from and writable to JSON.

A decoder is a sequence of segments; a segment is one layer config and how often it repeats.
Families of models (ModuleFormer, JetMoE, Mixtral, Llama, ...) are values of these records, not
classes of their own.
Axis letters: D width, H heads, E experts, K experts per token, F hidden width, V vocabulary, L
layers.
"""

from __future__ import annotations

import dataclasses
import itertools
from dataclasses import dataclass
from typing import Literal

from modbrick.errors import InputError

Activation = Literal["gelu", "gelu_tanh", "silu", "relu", "relu_squared", "tanh", "identity"]


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise InputError(message)


@dataclass(frozen=True)
class NormConfig:
    """Normalisation over the last axis: `layer` (mean and variance) or `rms` (mean square only)."""

    kind: Literal["layer", "rms"] = "layer"
    epsilon: float = 1e-5
    bias: bool = True

    def __post_init__(self) -> None:
        _require(self.epsilon > 0, f"norm epsilon must be positive, got {self.epsilon}")
        _require(
            not (self.kind == "rms" and self.bias), "an rms norm has no bias: set bias to False"
        )


@dataclass(frozen=True)
class RopeConfig:
    """Rotary position embedding (arXiv 2104.09864) and the usual scalings of its frequencies.

    Attributes:
      base: wavelength base (theta).
      fraction: share of each head's width that is rotated, from the front.
      scaling: `none`; `linear` (positions divided by `factor`); `llama3` (low frequencies divided
        by `factor`, blended between the two frequency factors); `yarn` (arXiv 2309.00071, section
        3).
      factor: by how much the context is stretched.
      original_context: context length before stretching (llama3, yarn), in tokens.
      low_frequency_factor, high_frequency_factor: the blend's bounds (llama3).
      beta_fast, beta_slow: the ramp's bounds in rotations over the original context (yarn).
      attention_factor: multiplier of the rotated queries and keys (yarn); None: 0.1 ln(factor) + 1.
    """

    base: float = 10_000.0
    fraction: float = 1.0
    scaling: Literal["none", "linear", "llama3", "yarn"] = "none"
    factor: float = 1.0
    original_context: int | None = None
    low_frequency_factor: float = 1.0
    high_frequency_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None

    @property
    def stretched_from(self) -> int:
        """The original context, which llama3 and yarn scalings have."""
        assert self.original_context is not None, "checked when the config was made"
        return self.original_context

    def __post_init__(self) -> None:
        _require(self.base > 0, f"rope base must be positive, got {self.base}")
        _require(0 < self.fraction <= 1, f"rope fraction must be in (0, 1], got {self.fraction}")
        _require(self.factor >= 1, f"rope factor must be at least 1, got {self.factor}")
        _require(
            self.scaling not in ("llama3", "yarn") or self.original_context is not None,
            f"rope scaling {self.scaling!r} needs original_context",
        )


@dataclass(frozen=True)
class RouterConfig:
    """How experts are chosen for a token.

    Attributes:
      kind: `linear` (no bias); `mlp` (hidden layer with bias, exact GELU, output without bias);
        `gmm` (cosine similarity of a projection to learned centroids, times exp(temperature)).
      hidden: width of the hidden layer (mlp) or of the centroids (gmm); ignored by `linear`.
      sample_top_k: in training, how many of the K experts are sampled without replacement instead
        of taken from the top.
      gates: `probability` (softmax over all experts, taken as it is) or `renormalised` (divided by
        the sum over the chosen K).
    """

    kind: Literal["linear", "mlp", "gmm"] = "mlp"
    hidden: int = 256
    sample_top_k: int = 0
    gates: Literal["probability", "renormalised"] = "probability"

    def __post_init__(self) -> None:
        _require(self.hidden > 0, f"router hidden width must be positive, got {self.hidden}")
        _require(self.sample_top_k >= 0, f"sample_top_k is negative: {self.sample_top_k}")


@dataclass(frozen=True)
class ExpertsConfig:
    """A bank of experts and the router that chooses `top_k` of them for each token.

    `output_bias` adds one bias of width D, shared by the experts, to the combined output.
    """

    count: int
    top_k: int
    router: RouterConfig = RouterConfig()
    output_bias: bool = False

    def __post_init__(self) -> None:
        _require(self.count >= 1, f"experts count must be at least 1, got {self.count}")
        _require(
            1 <= self.top_k <= self.count,
            f"top_k must be between 1 and the number of experts ({self.count}), got {self.top_k}",
        )
        _require(
            self.router.sample_top_k <= self.top_k,
            f"sample_top_k ({self.router.sample_top_k}) exceeds top_k ({self.top_k})",
        )


Projection = Literal["query", "key", "value", "output"]


@dataclass(frozen=True)
class AttentionConfig:
    """Causal self-attention, dense or as a mixture of attention heads.

    With `experts`, the query and output projections are banks chosen by one router, each expert has
    `heads` heads of its own, and keys and values are shared by all experts.

    Attributes:
      kind: `stickbreaking` (arXiv 2410.17980) or `softmax`.
      heads: query heads (of each expert, if there are experts).
      head_width: width of a head.
      key_value_heads: None means `heads`.
      key_value: `projected`, or `identity`: keys and values are the normalised input itself.
      biases: projections with a bias. A query or output bias needs dense heads.
      query_key_norm: normalisation of queries and keys before positions are applied.
      query_key_norm_axis: `head` (each head on its own) or `all` (all heads of a token together).
      rope: rotary positions, or None for no position embedding.
      window: keys further back than this many tokens (the current one included) are invisible.
      scale: multiplier of the logits; None means 1/sqrt(head_width).
      attend_current: stick-breaking only: a token may attend to itself.
    """

    heads: int
    head_width: int
    kind: Literal["stickbreaking", "softmax"] = "stickbreaking"
    key_value_heads: int | None = None
    key_value: Literal["projected", "identity"] = "projected"
    biases: tuple[Projection, ...] = ()
    query_key_norm: NormConfig | None = None
    query_key_norm_axis: Literal["head", "all"] = "head"
    rope: RopeConfig | None = None
    window: int | None = None
    scale: float | None = None
    attend_current: bool = True
    experts: ExpertsConfig | None = None

    def __post_init__(self) -> None:
        _require(self.heads >= 1, f"attention heads must be at least 1, got {self.heads}")
        _require(self.head_width >= 1, f"head_width must be at least 1, got {self.head_width}")
        _require(
            self.grouped_heads >= 1 and self.heads % self.grouped_heads == 0,
            f"{self.heads} heads do not divide into {self.grouped_heads} key_value_heads",
        )
        _require(
            self.window is None or self.window >= 1,
            f"attention window must be at least 1, got {self.window}",
        )
        _require(
            self.kind == "stickbreaking" or self.attend_current,
            "softmax attention always attends to the current token: leave attend_current True",
        )
        for name in ("query", "output"):
            _require(
                self.experts is None or name not in self.biases,
                f"a mixture of attention heads has no {name} bias (use experts.output_bias)",
            )
        if self.rope is not None:
            rotated = self.head_width * self.rope.fraction
            _require(
                rotated == int(rotated) and int(rotated) % 2 == 0,
                f"rope rotates an even number of a head's values, got "
                f"{rotated:g} of {self.head_width}",
            )

    @property
    def grouped_heads(self) -> int:
        """Number of key/value heads."""
        return self.heads if self.key_value_heads is None else self.key_value_heads

    @property
    def query_width(self) -> int:
        """Width of all query heads (of one expert) together."""
        return self.heads * self.head_width

    @property
    def key_width(self) -> int:
        """Width of all key heads together."""
        return self.grouped_heads * self.head_width


@dataclass(frozen=True)
class FeedForwardConfig:
    """Feed-forward layer: down(activation(up x)), or down(activation(gate x) * up x) if `gated`.

    With `experts`, each expert is such a layer of hidden width `hidden`, and `bias` must be False.
    """

    hidden: int
    activation: Activation = "gelu_tanh"
    gated: bool = False
    bias: bool = False
    experts: ExpertsConfig | None = None

    def __post_init__(self) -> None:
        _require(self.hidden >= 1, f"feed_forward hidden must be at least 1, got {self.hidden}")
        _require(
            not (self.bias and self.experts),
            "feed-forward experts have no bias of their own (use experts.output_bias)",
        )


@dataclass(frozen=True)
class LayerConfig:
    """One pre-norm decoder layer; `residual_multiplier` scales what it adds to the stream."""

    attention: AttentionConfig
    feed_forward: FeedForwardConfig
    norm: NormConfig = NormConfig()
    residual_multiplier: float = 1.0


@dataclass(frozen=True)
class SegmentConfig:
    """`repeats` equal layers in a row, stacked and scanned."""

    layer: LayerConfig
    repeats: int = 1

    def __post_init__(self) -> None:
        _require(self.repeats >= 1, f"segment repeats must be at least 1, got {self.repeats}")


@dataclass(frozen=True)
class ModelConfig:
    """A decoder-only language model.

    Equal neighbouring segments are merged, so that equal models have equal configs (and
    checkpoints) however their layers were written down.

    Attributes:
      vocabulary: number of token ids, V.
      width: residual width, D.
      segments: the layers, from the embedding to the head.
      context: tokens the model is meant for; a default for data and caches, not a limit.
      tied_head: the head is the embedding, transposed.
      embedding_multiplier, logit_multiplier: scale the embeddings and the logits.
      dtype: of the computation. Parameters, log-space sums, router probabilities, logits and losses
        are float32 whatever it is.
      router_statistics: `valid` counts real tokens only; `all` counts padded ones too, as the
        original ModuleFormer code does.
      initial_scale: standard deviation of initial embeddings and dense projections.
      expert_initialiser: initial expert weights: `uniform_fan_in` (uniform in ±1/in, as the
        original ModuleFormer code) or `normal` (of standard deviation `initial_scale`).
    """

    vocabulary: int
    width: int
    segments: tuple[SegmentConfig, ...]
    norm: NormConfig = NormConfig()
    context: int = 1024
    tied_head: bool = False
    embedding_multiplier: float = 1.0
    logit_multiplier: float = 1.0
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    router_statistics: Literal["valid", "all"] = "valid"
    initial_scale: float = 0.02
    expert_initialiser: Literal["uniform_fan_in", "normal"] = "uniform_fan_in"

    def __post_init__(self) -> None:
        for name in ("vocabulary", "width", "context"):
            _require(
                getattr(self, name) >= 1, f"{name} must be at least 1, got {getattr(self, name)}"
            )
        _require(len(self.segments) >= 1, "a model needs at least one segment of layers")
        merged = tuple(
            SegmentConfig(layer, sum(s.repeats for s in run))
            for layer, run in itertools.groupby(self.segments, key=lambda s: s.layer)
        )
        object.__setattr__(self, "segments", merged)
        for segment in merged:
            attention = segment.layer.attention
            if attention.key_value == "identity":
                _require(
                    attention.key_width == self.width,
                    f"identity keys and values need key_value_heads * head_width = width "
                    f"({self.width}), got {attention.grouped_heads} * {attention.head_width}",
                )
                _require(
                    not {"key", "value"} & set(attention.biases),
                    "identity keys and values have no bias: drop key and value from biases",
                )

    @property
    def layers(self) -> tuple[LayerConfig, ...]:
        """Every layer's config, by absolute layer index."""
        return tuple(s.layer for s in self.segments for _ in range(s.repeats))

    def replace(self, **changes: object) -> ModelConfig:
        """Returns a copy with the given fields changed."""
        return dataclasses.replace(self, **changes)  # type: ignore[arg-type]
