"""Checkpoints of Mixtral (arXiv 2401.04088): Mistral with feed-forward experts.

The library chooses the top k of a softmax over all experts and divides their probabilities by the
sum; files keep every expert's three projections apart, and so does what is written here. Release 5
of the library holds a bank as one tensor, gate and up projection one after the other, and reads
both.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from modbrick.convert.families.llama import ATTENTION, BASE, OUTER
from modbrick.convert.format import Format, Row, Translation, fused, in_every_layer, row
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

ARCHITECTURE = "MixtralForCausalLM"


def _row(path: str, name: str) -> Row:
    """A row of the block, which release 5 calls `mlp`, and files `block_sparse_moe`."""
    layer = "model.layers.{layer}"
    return row(path, f"{layer}.block_sparse_moe.{name}", TRANSPOSED, also=(f"{layer}.mlp.{name}",))


_ROUTER = _row("feed_forward.router.output.weight", "gate.weight")
_EXPERTS = (
    _ROUTER,
    _row("feed_forward.gate.weight", "experts.{expert}.w1.weight"),
    _row("feed_forward.down.weight", "experts.{expert}.w2.weight"),
    _row("feed_forward.up.weight", "experts.{expert}.w3.weight"),
)
_FUSED_EXPERTS = (
    _ROUTER,
    fused(
        ("feed_forward.gate.weight", "feed_forward.up.weight"),
        "model.layers.{layer}.mlp.experts.gate_up_proj",
        TRANSPOSED,
        axis=1,
        also=("model.layers.{layer}.block_sparse_moe.experts.gate_up_proj",),
    ),
    _row("feed_forward.down.weight", "experts.down_proj"),
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
    other_layers=(in_every_layer(*ATTENTION, *_FUSED_EXPERTS),),
    base=BASE,
    ignored=ROTARY_BUFFERS,
)
