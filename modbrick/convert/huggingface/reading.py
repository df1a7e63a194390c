"""Reading the `config.json` of a decoder of the transformers library: what all families share."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any

from modbrick.config import (
    AttentionConfig,
    ExpertsConfig,
    FeedForwardConfig,
    LayerConfig,
    ModelConfig,
    NormConfig,
    RouterConfig,
    SegmentConfig,
)
from modbrick.convert.huggingface.fields import (
    ACTIVATIONS,
    check_layer_types,
    choice,
    computation_dtype,
    read_fields,
)
from modbrick.convert.huggingface.keys import REFUSED_IF_SET, changes_nothing
from modbrick.convert.huggingface.rope import RopeFields, read_rope
from modbrick.errors import InputError, listed, located


@dataclasses.dataclass(frozen=True)
class DecoderFields(RopeFields):
    """Fields that all families have, with the defaults that most of them have.

    Families add fields to these and change defaults; names and meanings are the library's.
    """

    vocab_size: int = 32000
    hidden_size: int = 4096
    intermediate_size: int = 11008
    num_hidden_layers: int = 32
    initializer_range: float = 0.02
    rms_norm_eps: float = 1e-6
    tie_word_embeddings: bool = False
    attention_dropout: float | None = 0.0
    layer_types: tuple[str, ...] | None = None
    torch_dtype: str | None = None


@dataclasses.dataclass(frozen=True)
class HeadFields(DecoderFields):
    """Fields of families with ordinary attention heads.

    Attributes:
      num_key_value_heads: None means as many as query heads.
      head_dim: None means hidden_size / num_attention_heads.
    """

    num_attention_heads: int = 32
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    hidden_act: str = "silu"

    def head_width(self, where: str) -> int:
        """Returns the width of a head.

        Raises:
          InputError: the heads do not divide the width.
        """
        if self.head_dim is not None:
            return self.head_dim
        if self.num_attention_heads < 1 or self.hidden_size % self.num_attention_heads:
            raise InputError(
                f"{where}: hidden_size ({self.hidden_size}) does not divide into "
                f"{self.num_attention_heads} heads (num_attention_heads)"
            )
        return self.hidden_size // self.num_attention_heads


@dataclasses.dataclass(frozen=True)
class BalancedFields:
    """Fields of families that can train with the library's loss of balance between experts."""

    output_router_logits: bool | None = False
    router_aux_loss_coef: float | None = 0.001

    def objective(self, where: str) -> dict[str, float]:
        """Returns the weights of the router losses, by the names of `ObjectiveConfig`.

        The library adds the loss where it also returns the router's logits.

        Raises:
          InputError: a weight that is none.
        """
        weight = self.router_aux_loss_coef or 0.0
        if not 0 <= weight < math.inf:
            raise InputError(f"{where}: router_aux_loss_coef is {weight}, no weight of a loss")
        return {"pooled_switch": weight} if self.output_router_logits and weight else {}


def read_decoder[T: DecoderFields](
    cls: type[T],
    data: Mapping[str, Any],
    where: str,
    *,
    architecture: str,
    aliases: Mapping[str, str] | None = None,
    ignored: Iterable[str] = (),
    neutral: Mapping[str, Any] | None = None,
) -> T:
    """Returns the fields of a `config.json`, of which every key must be known.

    Args:
      cls: the family's fields.
      data: the parsed file.
      where: begins every message.
      architecture: the only one of `architectures` that is meant.
      aliases: other names of fields.
      ignored: keys of the family that do not matter, besides `IGNORED`.
      neutral: keys that the family does not read, and what it always does.

    Raises:
      InputError: what `read_fields` refuses; unknown keys that may change something, each by name.
    """
    fields = read_fields(cls, data, where, architecture=architecture, aliases=aliases)
    names = {field.name for field in dataclasses.fields(cls)} | set(aliases or {}) | {"dtype"}
    names |= REFUSED_IF_SET | set(ignored)
    always = neutral or {}
    unknown = sorted(
        key
        for key in data.keys() - names
        if not (data[key] == always[key] if key in always else changes_nothing(key, data[key]))
    )
    if unknown:
        named = listed(f"{key} ({data[key]!r})" for key in unknown)
        raise InputError(
            f"{where}: unknown to the import, which cannot tell whether they matter: {named}; "
            "remove them if the model does not depend on them, or import with "
            f"--ignore_keys={listed(unknown, ',')}"
        )
    return fields


def rms_norm(epsilon: float, where: str) -> NormConfig:
    """Returns the norm of all families.

    Raises:
      InputError: an epsilon that is not positive.
    """
    with located(f"{where}: rms_norm_eps"):
        return NormConfig(kind="rms", epsilon=epsilon, bias=False)


def read_attention(
    fields: HeadFields,
    where: str,
    *,
    theta: float = 10_000.0,
    bias: bool | None = False,
    **options: Any,
) -> AttentionConfig:
    """Returns ordinary softmax attention with rotary positions.

    Args:
      fields: of the config.
      where: begins every message.
      theta: the family's default base of the rotary positions.
      bias: whether all four projections have a bias.
      **options: other fields of `AttentionConfig`.

    Raises:
      InputError: heads that do not fit, or positions that are not supported.
    """
    width, rope = fields.head_width(where), read_rope(fields, where, theta=theta)
    check_layer_types(fields.layer_types, fields.num_hidden_layers, options.get("window"), where)
    with located(where):
        return AttentionConfig(
            heads=fields.num_attention_heads,
            head_width=width,
            kind="softmax",
            key_value_heads=fields.num_key_value_heads,
            biases=("query", "key", "value", "output") if bias else (),
            rope=rope,
            **options,
        )


def read_layer(
    fields: HeadFields,
    attention: AttentionConfig,
    where: str,
    *,
    hidden: int | None = None,
    **options: Any,
) -> LayerConfig:
    """Returns a layer with a gated feed-forward, dense or of experts.

    Args:
      fields: of the config.
      attention: of the layer.
      where: begins every message.
      hidden: width of the feed-forward; None: `intermediate_size`.
      **options: other fields of `FeedForwardConfig`.

    Raises:
      InputError: an unknown activation, or sizes that cannot be.
    """
    activation = choice(fields.hidden_act, ACTIVATIONS, "hidden_act", where)
    norm = rms_norm(fields.rms_norm_eps, where)
    with located(where):
        feed_forward = FeedForwardConfig(
            hidden=fields.intermediate_size if hidden is None else hidden,
            activation=activation,
            gated=True,
            **options,
        )
    return LayerConfig(attention, feed_forward, norm)


def read_experts(
    count: int, top_k: int, where: str, *, renormalised: bool, output_bias: bool = False
) -> ExpertsConfig:
    """Returns a bank with a linear router.

    Args:
      count: of experts.
      top_k: experts per token.
      where: begins every message.
      renormalised: gates sum to one over the chosen experts. (A softmax over the chosen logits is
        the same.)
      output_bias: see `ExpertsConfig`.

    Raises:
      InputError: numbers that cannot be.
    """
    router = RouterConfig(kind="linear", gates="renormalised" if renormalised else "probability")
    with located(where):
        return ExpertsConfig(count, top_k, router, output_bias)


def segment(layer: LayerConfig, repeats: int, where: str) -> tuple[SegmentConfig, ...]:
    """Returns `repeats` equal layers.

    Raises:
      InputError: there are none.
    """
    with located(f"{where}: num_hidden_layers"):
        return (SegmentConfig(layer, repeats),)


def read_model(
    fields: DecoderFields,
    segments: Iterable[SegmentConfig],
    where: str,
    *,
    embedding_multiplier: float = 1.0,
    logit_multiplier: float = 1.0,
) -> ModelConfig:
    """Returns the model around its segments of layers.

    Args:
      fields: of the config.
      segments: the layers.
      where: begins every message.
      embedding_multiplier: see `ModelConfig`.
      logit_multiplier: see `ModelConfig`.

    Raises:
      InputError: sizes that cannot be.
    """
    with located(where):
        return ModelConfig(
            vocabulary=fields.vocab_size,
            width=fields.hidden_size,
            segments=tuple(segments),
            norm=rms_norm(fields.rms_norm_eps, where),
            context=fields.max_position_embeddings,
            tied_head=fields.tie_word_embeddings,
            embedding_multiplier=embedding_multiplier,
            logit_multiplier=logit_multiplier,
            dtype=computation_dtype(fields.torch_dtype, where),
            initial_scale=fields.initializer_range,
            expert_initialiser="normal",
        )


def read_equal_layers(
    fields: DecoderFields, layer: LayerConfig, where: str, **multipliers: float
) -> ModelConfig:
    """Returns the model whose `num_hidden_layers` layers are all the same; see `read_model`."""
    segments = segment(layer, fields.num_hidden_layers, where)
    return read_model(fields, segments, where, **multipliers)
