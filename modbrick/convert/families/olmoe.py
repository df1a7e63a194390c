"""Checkpoints of OLMoE (arXiv 2409.02060): a Llama with experts and normalised queries and keys.

Queries and keys are normalised over all heads together, before they are clipped and rotated. Gates
are probabilities over all experts, as they are or divided by the sum of the chosen ones.
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
    rms_norm,
)
from modbrick.convert.huggingface.writing import write_experts, write_heads, write_objective
from modbrick.convert.transforms import TRANSPOSED
from modbrick.errors import InputError

ARCHITECTURE = "OlmoeForCausalLM"

_MLP = "model.layers.{layer}.mlp"
_ROUTER = row("feed_forward.router.output.weight", f"{_MLP}.gate.weight", TRANSPOSED)
EXPERTS = (
    _ROUTER,
    row("feed_forward.gate.weight", f"{_MLP}.experts.{{expert}}.gate_proj.weight", TRANSPOSED),
    row("feed_forward.up.weight", f"{_MLP}.experts.{{expert}}.up_proj.weight", TRANSPOSED),
    row("feed_forward.down.weight", f"{_MLP}.experts.{{expert}}.down_proj.weight", TRANSPOSED),
)
"""Rows of a bank of experts, each with names of its own."""

FUSED_EXPERTS = (
    _ROUTER,
    fused(
        ("feed_forward.gate.weight", "feed_forward.up.weight"),
        f"{_MLP}.experts.gate_up_proj",
        TRANSPOSED,
        axis=1,
    ),
    row("feed_forward.down.weight", f"{_MLP}.experts.down_proj", TRANSPOSED),
)
"""Rows of a bank as release 5 of the library holds it, and reads it too."""


@dataclasses.dataclass(frozen=True)
class OlmoeFields(BalancedFields, HeadFields):
    """Fields of `OlmoeConfig`.

    Attributes:
      norm_topk_prob: gates are divided by their sum.
    """

    vocab_size: int = 50304
    hidden_size: int = 2048
    intermediate_size: int = 2048
    num_hidden_layers: int = 16
    num_attention_heads: int = 16
    max_position_embeddings: int = 4096
    rms_norm_eps: float = 1e-5
    attention_bias: bool = False
    clip_qkv: float | None = None
    num_experts_per_tok: int = 8
    num_experts: int = 64
    router_aux_loss_coef: float | None = 0.01
    norm_topk_prob: bool = False


def read_config(data: Mapping[str, Any], where: str) -> Translation:
    """Translates a `config.json`.

    Raises:
      InputError: settings that this library would compute otherwise, by name.
    """
    fields = read_decoder(
        OlmoeFields,
        data,
        where,
        architecture=ARCHITECTURE,
        aliases={"num_local_experts": "num_experts"},
        neutral={"use_qk_norm": True, "qk_norm": True},
    )
    if fields.head_width(where) * fields.num_attention_heads != fields.hidden_size:
        raise InputError(
            f"{where}: head_dim is {fields.head_dim}, but the original has norms of queries that "
            f"are {fields.hidden_size} (hidden_size) wide over {fields.num_attention_heads} heads"
        )
    attention = read_attention(
        fields,
        where,
        bias=fields.attention_bias,
        query_key_norm=rms_norm(fields.rms_norm_eps, where),
        query_key_norm_axis="all",
        clip=fields.clip_qkv,
    )
    experts = read_experts(
        fields.num_experts, fields.num_experts_per_tok, where, renormalised=fields.norm_topk_prob
    )
    layer = read_layer(fields, attention, where, experts=experts)
    return Translation(read_equal_layers(fields, layer, where), fields.objective(where))


def write_config(translation: Translation) -> dict[str, Any]:
    """Returns the `config.json` of a model."""
    layer = translation.model.layers[0]
    experts = layer.feed_forward.experts
    return (
        write_heads(translation.model)
        | write_experts(experts, count="num_experts")
        | write_objective(translation)
        | {
            "attention_bias": bool(layer.attention.biases),
            "clip_qkv": layer.attention.clip,
            "norm_topk_prob": experts is not None and experts.router.gates == "renormalised",
        }
    )


FORMAT = Format(
    name="olmoe",
    model_type="olmoe",
    architecture=ARCHITECTURE,
    outer=OUTER,
    layer=in_every_layer(*ATTENTION, *EXPERTS),
    read_config=read_config,
    write_config=write_config,
    other_layers=(in_every_layer(*ATTENTION, *FUSED_EXPERTS),),
    base=BASE,
    ignored=ROTARY_BUFFERS,
)
