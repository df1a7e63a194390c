"""Checkpoints of Mistral: a Llama without biases, with a window."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from modbrick.convert.families.llama import BASE, LAYER, OUTER
from modbrick.convert.format import Format, Translation
from modbrick.convert.huggingface.buffers import ROTARY_BUFFERS
from modbrick.convert.huggingface.reading import (
    HeadFields,
    read_attention,
    read_decoder,
    read_equal_layers,
    read_layer,
)
from modbrick.convert.huggingface.writing import write_heads

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
    return Translation(read_equal_layers(fields, layer, where))


def write_config(translation: Translation) -> dict[str, Any]:
    """Returns the `config.json` of a model."""
    window = translation.model.layers[0].attention.window
    return write_heads(translation.model) | {"sliding_window": window}


FORMAT = Format(
    name="mistral",
    model_type="mistral",
    architecture=ARCHITECTURE,
    outer=OUTER,
    layer=LAYER,
    read_config=read_config,
    write_config=write_config,
    base=BASE,
    ignored=ROTARY_BUFFERS,
)
