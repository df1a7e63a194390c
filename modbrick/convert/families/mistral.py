"""Checkpoints of Mistral: a Llama without biases, with a window."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from modbrick.convert.families.llama import OUTER, ROTARY_BUFFERS, layer_rows
from modbrick.convert.format import Format, Translation
from modbrick.convert.huggingface.config import (
    HeadFields,
    read_attention,
    read_decoder,
    read_layer,
    read_model,
    segment,
)
from modbrick.convert.huggingface.export import write_heads

ARCHITECTURE = "MistralForCausalLM"


@dataclasses.dataclass(frozen=True)
class MistralFields(HeadFields):
    """Fields of `MistralConfig`."""

    intermediate_size: int = 14336
    max_position_embeddings: int = 131072
    num_key_value_heads: int | None = 8
    sliding_window: int | None = 4096


def read_config(data: Mapping[str, Any], where: str) -> Translation:
    """Translates a `config.json`.

    Raises:
      InputError: settings that this library would compute otherwise, by name.
    """
    fields = read_decoder(MistralFields, data, where, architecture=ARCHITECTURE)
    attention = read_attention(fields, where, window=fields.sliding_window)
    layer = read_layer(fields, attention, where)
    return Translation(read_model(fields, segment(layer, fields.num_hidden_layers, where), where))


def write_config(translation: Translation) -> dict[str, Any]:
    """Returns the `config.json` of a model."""
    window = translation.model.layers[0].attention.window
    return write_heads(translation.model) | {"sliding_window": window}


FORMAT = Format(
    name="mistral",
    model_type="mistral",
    architecture=ARCHITECTURE,
    outer=OUTER,
    layer=layer_rows,
    read_config=read_config,
    write_config=write_config,
    ignored=ROTARY_BUFFERS,
)
