"""Checkpoints of Granite-MoE (PowerMoE, arXiv 2408.13359): a Mixtral with multipliers.

The library takes a softmax over the chosen logits, which are the probabilities over all experts
divided by the sum of the chosen ones. Files keep each bank as one tensor, gate and up projection
one after the other; release 5 of the library has other names for these tensors, and reads both.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from modbrick.convert.families.llama import ATTENTION, BASE, OUTER
from modbrick.convert.format import Format, Translation, fused, in_every_layer, row
from modbrick.convert.huggingface.buffers import ROTARY_BUFFERS
from modbrick.convert.huggingface.reading import (
    BalancedFields,
    HeadFields,
    read_attention,
    read_decoder,
    read_equal_layers,
    read_experts,
    read_layer,
)
from modbrick.convert.huggingface.writing import write_experts, write_heads, write_objective
from modbrick.convert.transforms import TRANSPOSED
from modbrick.errors import InputError

ARCHITECTURE = "GraniteMoeForCausalLM"

_BLOCK = "model.layers.{layer}.block_sparse_moe"
_EXPERTS = (
    row(
        "feed_forward.router.output.weight",
        f"{_BLOCK}.router.layer.weight",
        TRANSPOSED,
        also=(f"{_BLOCK}.router.weight",),
    ),
    fused(
        ("feed_forward.gate.weight", "feed_forward.up.weight"),
        f"{_BLOCK}.input_linear.weight",
        TRANSPOSED,
        axis=1,
        also=(f"{_BLOCK}.experts.gate_up_proj",),
    ),
    row(
        "feed_forward.down.weight",
        f"{_BLOCK}.output_linear.weight",
        TRANSPOSED,
        also=(f"{_BLOCK}.experts.down_proj",),
    ),
)


@dataclasses.dataclass(frozen=True)
class GraniteMoeFields(BalancedFields, HeadFields):
    """Fields of `GraniteMoeConfig`.

    Attributes:
      attention_multiplier: of the attention logits, instead of 1/sqrt(head width).
      logits_scaling: by which the logits are divided.
    """

    attention_bias: bool = False
    embedding_multiplier: float = 1.0
    logits_scaling: float = 1.0
    residual_multiplier: float = 1.0
    attention_multiplier: float = 1.0
    num_local_experts: int = 8
    num_experts_per_tok: int = 2


def read_config(data: Mapping[str, Any], where: str) -> Translation:
    """Translates a `config.json`.

    Raises:
      InputError: settings that this library would compute otherwise, by name.
    """
    fields = read_decoder(
        GraniteMoeFields,
        data,
        where,
        architecture=ARCHITECTURE,
        aliases={"num_experts": "num_local_experts"},
    )
    if fields.logits_scaling == 0:
        raise InputError(f"{where}: logits_scaling is 0, by which nothing can be divided")
    attention = read_attention(
        fields, where, bias=fields.attention_bias, scale=fields.attention_multiplier
    )
    experts = read_experts(
        fields.num_local_experts, fields.num_experts_per_tok, where, renormalised=True
    )
    layer = dataclasses.replace(
        read_layer(fields, attention, where, experts=experts),
        residual_multiplier=fields.residual_multiplier,
    )
    model = read_equal_layers(
        fields,
        layer,
        where,
        embedding_multiplier=fields.embedding_multiplier,
        logit_multiplier=1.0 / fields.logits_scaling,
    )
    return Translation(model, fields.objective(where))


def write_config(translation: Translation) -> dict[str, Any]:
    """Returns the `config.json` of a model."""
    model, layer = translation.model, translation.model.layers[0]
    scale = layer.attention.scale
    return (
        write_heads(model)
        | write_experts(layer.feed_forward.experts, count="num_local_experts")
        | write_objective(translation)
        | {
            "attention_bias": bool(layer.attention.biases),
            "embedding_multiplier": model.embedding_multiplier,
            "logits_scaling": reciprocal(model.logit_multiplier),
            "residual_multiplier": layer.residual_multiplier,
            "attention_multiplier": layer.attention.head_width**-0.5 if scale is None else scale,
        }
    )


def reciprocal(value: float) -> float:
    """Returns the shortest number whose reciprocal is `value`; the nearest one, if there is none.

    So 1/(1/x) is x for every x that someone would write, which plain division does not promise.
    """
    if value == 0:
        return 0.0
    for digits in range(1, 18):
        candidate = float(f"{1.0 / value:.{digits}g}")
        if candidate and 1.0 / candidate == value:
            return candidate
    return 1.0 / value


FORMAT = Format(
    name="granitemoe",
    model_type="granitemoe",
    architecture=ARCHITECTURE,
    outer=OUTER,
    layer=in_every_layer(*ATTENTION, *_EXPERTS),
    read_config=read_config,
    write_config=write_config,
    base=BASE,
    ignored=ROTARY_BUFFERS,
)
