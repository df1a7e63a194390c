"""Configs of a layer, of a segment of layers and of a whole model."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from modbrick.config.attention import AttentionConfig
from modbrick.config.checks import require, require_finite
from modbrick.config.feed_forward import FeedForwardConfig
from modbrick.config.norm import NormConfig
from modbrick.dtypes import dtype_name

COMPUTED = ("float32", "bfloat16")


@dataclass(frozen=True)
class LayerConfig:
    """One pre-norm decoder layer; `residual_multiplier` scales what it adds to the residual."""

    attention: AttentionConfig
    feed_forward: FeedForwardConfig
    norm: NormConfig = NormConfig()
    residual_multiplier: float = 1.0

    def __post_init__(self) -> None:
        require_finite(self, "layer")


@dataclass(frozen=True)
class SegmentConfig:
    """`repeats` equal layers in a row, stacked and scanned."""

    layer: LayerConfig
    repeats: int = 1

    def __post_init__(self) -> None:
        require(self.repeats >= 1, f"segment repeats must be at least 1, got {self.repeats}")


@dataclass(frozen=True)
class ModelConfig:
    """A decoder-only language model.

    Equal neighbouring segments are merged, so that equal models have equal configs (and
    checkpoints) however their layers were written down.

    Attributes:
      vocabulary: number of token ids, V.
      width: of the residual stream, D.
      segments: the layers, from the embedding to the head.
      context: tokens the model is meant for; a default for data and caches, which are not held to
        it; rows of training are.
      tied_head: the head is the embedding, transposed.
      embedding_multiplier, logit_multiplier: scale the embeddings and the logits.
      dtype: of the computation. Parameters, log-space sums, router probabilities, logits and losses
        are float32 whatever it is.
      router_statistics: `valid` counts real tokens only; `all` counts padded ones too, as the
        original ModuleFormer code does.
      initial_scale: standard deviation of initial embeddings and dense projections.
      expert_initialiser: initial expert weights: `uniform_fan_in` (uniform in ±1/in, as the
        original ModuleFormer code) or `normal` (of standard deviation `initial_scale`).

    Examples:
        >>> import modbrick
        >>> config = modbrick.families.dense(
        ...     vocabulary=32, width=8, layers=2, heads=2, feed_forward_width=16
        ... )
        >>> len(config.layers), config.layers[0].attention.kind
        (2, 'stickbreaking')
        >>> config.replace(dtype="float32").dtype
        'float32'
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
        object.__setattr__(self, "dtype", dtype_name(self.dtype, "model dtype", COMPUTED))
        require_finite(self, "model")
        for name in ("vocabulary", "width", "context"):
            require(
                getattr(self, name) >= 1, f"{name} must be at least 1, got {getattr(self, name)}"
            )
        require(self.initial_scale > 0, f"initial_scale must be positive, got {self.initial_scale}")
        require(len(self.segments) >= 1, "a model needs at least one segment of layers")
        merged = tuple(
            SegmentConfig(layer, sum(s.repeats for s in run))
            for layer, run in itertools.groupby(self.segments, key=lambda s: s.layer)
        )
        object.__setattr__(self, "segments", merged)
        for segment in merged:
            attention = segment.layer.attention
            if attention.key_value == "identity":
                require(
                    attention.key_width == self.width,
                    f"identity keys and values need key_value_heads * head_width = width "
                    f"({self.width}), got {attention.grouped_heads} * {attention.head_width}",
                )
                require(
                    not {"key", "value"} & set(attention.biases),
                    "identity keys and values have no bias: drop key and value from biases",
                )

    @property
    def layers(self) -> tuple[LayerConfig, ...]:
        """Every layer's config, by absolute layer index."""
        return tuple(s.layer for s in self.segments for _ in range(s.repeats))

    def placed_segments(self) -> Iterator[tuple[str, int, SegmentConfig]]:
        """Yields each segment with its index as text and the absolute index of its first layer."""
        first = 0
        for index, segment in enumerate(self.segments):
            yield str(index), first, segment
            first += segment.repeats

    def replace(self, **changes: object) -> ModelConfig:
        """Returns a copy with the given fields changed."""
        return dataclasses.replace(self, **changes)  # type: ignore[arg-type]
