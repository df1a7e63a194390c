"""Checkpoints of Llama, as the transformers library writes them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from modbrick.convert.format import Format, Translation, in_every_layer, row
from modbrick.convert.huggingface.buffers import ROTARY_BUFFERS
from modbrick.convert.huggingface.reading import (
    HeadFields,
    read_attention,
    read_decoder,
    read_equal_layers,
    read_layer,
)
from modbrick.convert.huggingface.writing import write_heads
from modbrick.convert.transforms import TRANSPOSED

ARCHITECTURE = "LlamaForCausalLM"

OUTER = (
    row("embedding", "model.embed_tokens.weight"),
    row("norm.scale", "model.norm.weight"),
    row("head.weight", "lm_head.weight", TRANSPOSED),
)
"""Rows that all families of the library share; a tied head has no parameter of its own."""

ATTENTION = (
    row("attention_norm.scale", "model.layers.{layer}.input_layernorm.weight"),
    row("attention.query.weight", "model.layers.{layer}.self_attn.q_proj.weight", TRANSPOSED),
    row("attention.key.weight", "model.layers.{layer}.self_attn.k_proj.weight", TRANSPOSED),
    row("attention.value.weight", "model.layers.{layer}.self_attn.v_proj.weight", TRANSPOSED),
    row("attention.output.weight", "model.layers.{layer}.self_attn.o_proj.weight", TRANSPOSED),
    row("attention.query.bias", "model.layers.{layer}.self_attn.q_proj.bias"),
    row("attention.key.bias", "model.layers.{layer}.self_attn.k_proj.bias"),
    row("attention.value.bias", "model.layers.{layer}.self_attn.v_proj.bias"),
    row("attention.output.bias", "model.layers.{layer}.self_attn.o_proj.bias"),
    row("attention.query_norm.scale", "model.layers.{layer}.self_attn.q_norm.weight"),
    row("attention.key_norm.scale", "model.layers.{layer}.self_attn.k_norm.weight"),
    row("feed_forward_norm.scale", "model.layers.{layer}.post_attention_layernorm.weight"),
)
"""Rows of ordinary attention and of both norms of a layer."""

FEED_FORWARD = (
    row("feed_forward.gate.weight", "model.layers.{layer}.mlp.gate_proj.weight", TRANSPOSED),
    row("feed_forward.up.weight", "model.layers.{layer}.mlp.up_proj.weight", TRANSPOSED),
    row("feed_forward.down.weight", "model.layers.{layer}.mlp.down_proj.weight", TRANSPOSED),
    row("feed_forward.gate.bias", "model.layers.{layer}.mlp.gate_proj.bias"),
    row("feed_forward.up.bias", "model.layers.{layer}.mlp.up_proj.bias"),
    row("feed_forward.down.bias", "model.layers.{layer}.mlp.down_proj.bias"),
)
"""Rows of a dense feed-forward."""

LAYER = in_every_layer(*ATTENTION, *FEED_FORWARD)
"""Rows of a dense layer."""

BASE = "model."
"""What names begin with, but those of the head."""


@dataclasses.dataclass(frozen=True)
class LlamaFields(HeadFields):
    """Fields of `LlamaConfig`."""

    attention_bias: bool = False
    mlp_bias: bool = False


def read_config(data: Mapping[str, Any], where: str) -> Translation:
    """Translates a `config.json`.

    Raises:
      InputError: settings that this library would compute otherwise, by name.
    """
    fields = read_decoder(LlamaFields, data, where, architecture=ARCHITECTURE)
    attention = read_attention(fields, where, bias=fields.attention_bias)
    layer = read_layer(fields, attention, where, bias=fields.mlp_bias)
    return Translation(read_equal_layers(fields, layer, where))


def write_config(translation: Translation) -> dict[str, Any]:
    """Returns the `config.json` of a model."""
    layer = translation.model.layers[0]
    return write_heads(translation.model) | {
        "attention_bias": bool(layer.attention.biases),
        "mlp_bias": layer.feed_forward.bias,
    }


FORMAT = Format(
    name="llama",
    model_type="llama",
    architecture=ARCHITECTURE,
    outer=OUTER,
    layer=LAYER,
    read_config=read_config,
    write_config=write_config,
    base=BASE,
    ignored=ROTARY_BUFFERS,
)
