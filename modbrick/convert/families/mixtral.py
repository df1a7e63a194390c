"""Checkpoints of Mixtral (arXiv 2401.04088): Mistral with feed-forward experts.

The library chooses the top k of a softmax over all experts and divides their probabilities by the
sum; files keep every expert's three projections apart.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from modbrick.convert.families.llama import ATTENTION, OUTER, ROTARY_BUFFERS
from modbrick.convert.format import Format, Translation, in_every_layer, row
from modbrick.convert.huggingface.fields import refuse_unless_zero
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

ARCHITECTURE = "MixtralForCausalLM"

_BLOCK = "model.layers.{layer}.block_sparse_moe"
_EXPERTS = (
    row("feed_forward.router.output.weight", f"{_BLOCK}.gate.weight", TRANSPOSED),
    row("feed_forward.gate.weight", f"{_BLOCK}.experts.{{expert}}.w1.weight", TRANSPOSED),
    row("feed_forward.down.weight", f"{_BLOCK}.experts.{{expert}}.w2.weight", TRANSPOSED),
    row("feed_forward.up.weight", f"{_BLOCK}.experts.{{expert}}.w3.weight", TRANSPOSED),
)


@dataclasses.dataclass(frozen=True)
class MixtralFields(BalancedFields, HeadFields):
    """Fields of `MixtralConfig`."""

    intermediate_size: int = 14336
    max_position_embeddings: int = 131072
    rms_norm_eps: float = 1e-5
    num_key_value_heads: int | None = 8
    sliding_window: int | None = None
    num_experts_per_tok: int = 2
    num_local_experts: int = 8
    router_jitter_noise: float | None = 0.0


def read_config(data: Mapping[str, Any], where: str) -> Translation:
    """Translates a `config.json`.

    Raises:
      InputError: settings that this library would compute otherwise, by name.
    """
    fields = read_decoder(
        MixtralFields,
        data,
        where,
        architecture=ARCHITECTURE,
        aliases={"num_experts": "num_local_experts"},
    )
    refuse_unless_zero(fields.router_jitter_noise, "router_jitter_noise", where)
    attention = read_attention(fields, where, theta=1e6, window=fields.sliding_window)
    experts = read_experts(
        fields.num_local_experts, fields.num_experts_per_tok, where, renormalised=True
    )
    layer = read_layer(fields, attention, where, experts=experts)
    return Translation(read_equal_layers(fields, layer, where), fields.objective(where))


def write_config(translation: Translation) -> dict[str, Any]:
    """Returns the `config.json` of a model."""
    layer = translation.model.layers[0]
    return (
        write_heads(translation.model)
        | write_experts(layer.feed_forward.experts, count="num_local_experts")
        | write_objective(translation)
        | {"sliding_window": layer.attention.window, "router_jitter_noise": 0.0}
    )


FORMAT = Format(
    name="mixtral",
    model_type="mixtral",
    architecture=ARCHITECTURE,
    outer=OUTER,
    layer=in_every_layer(*ATTENTION, *_EXPERTS),
    read_config=read_config,
    write_config=write_config,
    ignored=ROTARY_BUFFERS,
)
