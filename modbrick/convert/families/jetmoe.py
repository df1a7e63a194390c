"""Checkpoints of JetMoE (arXiv 2404.07413): mixtures of attention heads and of feed-forwards.

Each attention expert has as many query heads as there are key heads, one for each; keys and values
are one projection, one after the other. The library takes a softmax over the chosen logits of a
linear router, and keeps one bias for all experts of a bank.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from modbrick.config import AttentionConfig, FeedForwardConfig, LayerConfig
from modbrick.convert.families.llama import BASE, OUTER
from modbrick.convert.format import Format, Translation, fused, in_every_layer, row
from modbrick.convert.huggingface.buffers import ROTARY_BUFFERS
from modbrick.convert.huggingface.fields import ACTIVATIONS, check_layer_types, choice, name_of
from modbrick.convert.huggingface.reading import (
    DecoderFields,
    read_decoder,
    read_equal_layers,
    read_experts,
    rms_norm,
)
from modbrick.convert.huggingface.rope import read_rope
from modbrick.convert.huggingface.writing import write_decoder, write_experts
from modbrick.convert.transforms import TRANSPOSED
from modbrick.errors import InputError, located

ARCHITECTURE = "JetMoeForCausalLM"

LAYER_NORM_EPSILON = 1e-6
"""Of the norms in a layer, whatever `rms_norm_eps` says: it is that of the last norm only."""

_LAYER = "model.layers.{layer}"
_ATTENTION = f"{_LAYER}.self_attention"
_ROWS = (
    row("attention_norm.scale", f"{_LAYER}.input_layernorm.weight"),
    row("attention.router.output.weight", f"{_ATTENTION}.experts.router.layer.weight", TRANSPOSED),
    row("attention.query.weight", f"{_ATTENTION}.experts.input_linear.weight", TRANSPOSED),
    row("attention.output.weight", f"{_ATTENTION}.experts.output_linear.weight", TRANSPOSED),
    row("attention.output_bias", f"{_ATTENTION}.experts.bias"),
    fused(
        ("attention.key.weight", "attention.value.weight"),
        f"{_ATTENTION}.kv_proj.weight",
        TRANSPOSED,
        axis=0,
    ),
    row("feed_forward_norm.scale", f"{_LAYER}.post_attention_layernorm.weight"),
    row("feed_forward.router.output.weight", f"{_LAYER}.mlp.router.layer.weight", TRANSPOSED),
    fused(
        ("feed_forward.gate.weight", "feed_forward.up.weight"),
        f"{_LAYER}.mlp.input_linear.weight",
        TRANSPOSED,
        axis=1,
    ),
    row("feed_forward.down.weight", f"{_LAYER}.mlp.output_linear.weight", TRANSPOSED),
    row("feed_forward.output_bias", f"{_LAYER}.mlp.bias"),
)


@dataclasses.dataclass(frozen=True)
class JetMoeFields(DecoderFields):
    """Fields of `JetMoeConfig`.

    Attributes:
      num_key_value_heads: also the query heads of each attention expert.
      num_attention_heads: follows from the others; None: as it must be.
      kv_channels: width of a head.
      num_local_experts: of each bank.
      num_experts_per_tok: of each bank.
    """

    hidden_size: int = 2048
    num_hidden_layers: int = 12
    intermediate_size: int = 5632
    max_position_embeddings: int = 4096
    initializer_range: float = 0.01
    tie_word_embeddings: bool = True
    num_key_value_heads: int = 16
    num_attention_heads: int | None = None
    kv_channels: int = 128
    activation_function: str = "silu"
    num_local_experts: int = 8
    num_experts_per_tok: int = 2
    output_router_logits: bool = False
    aux_loss_coef: float = 0.01


def read_config(data: Mapping[str, Any], where: str) -> Translation:
    """Translates a `config.json`.

    Raises:
      InputError: settings that this library would compute otherwise, by name.
    """
    layers = data.get("num_hidden_layers", JetMoeFields.num_hidden_layers)
    fields = read_decoder(
        JetMoeFields,
        data,
        where,
        architecture=ARCHITECTURE,
        aliases={"head_dim": "kv_channels"},
        ignored=("layer_norm_epsilon",),
        neutral={"bias": True, "glu": True, "rotary_percent": 1, "num_layers": layers},
    )
    heads = fields.num_key_value_heads * fields.num_experts_per_tok
    if fields.num_attention_heads not in (None, heads):
        raise InputError(
            f"{where}: num_attention_heads is {fields.num_attention_heads}, but "
            f"num_key_value_heads times num_experts_per_tok is {heads}"
        )
    if fields.output_router_logits and fields.aux_loss_coef:
        raise InputError(
            f"{where}: output_router_logits adds a loss of balance to the original's that counts "
            "routers of attention twice, which is not supported; set it to false"
        )
    activation = choice(fields.activation_function, ACTIVATIONS, "activation_function", where)
    experts = read_experts(
        fields.num_local_experts,
        fields.num_experts_per_tok,
        where,
        renormalised=True,
        output_bias=True,
    )
    rope = read_rope(fields, where)
    check_layer_types(fields.layer_types, fields.num_hidden_layers, None, where)
    with located(where):
        attention = AttentionConfig(
            heads=fields.num_key_value_heads,
            head_width=fields.kv_channels,
            kind="softmax",
            rope=rope,
            experts=experts,
        )
        feed_forward = FeedForwardConfig(
            hidden=fields.intermediate_size, activation=activation, gated=True, experts=experts
        )
    layer = LayerConfig(attention, feed_forward, rms_norm(LAYER_NORM_EPSILON, where))
    return Translation(read_equal_layers(fields, layer, where))


def write_config(translation: Translation) -> dict[str, Any]:
    """Returns the `config.json` of a model."""
    model, layer = translation.model, translation.model.layers[0]
    attention, feed_forward = layer.attention, layer.feed_forward
    return (
        write_decoder(model)
        | write_experts(feed_forward.experts, count="num_local_experts")
        | {
            "num_key_value_heads": attention.heads,
            "kv_channels": attention.head_width,
            "intermediate_size": feed_forward.hidden,
            "activation_function": name_of(feed_forward.activation, ACTIVATIONS, "activation"),
        }
    )


FORMAT = Format(
    name="jetmoe",
    model_type="jetmoe",
    architecture=ARCHITECTURE,
    outer=OUTER,
    layer=in_every_layer(*_ROWS),
    read_config=read_config,
    write_config=write_config,
    base=BASE,
    ignored=ROTARY_BUFFERS,
)
