"""Checkpoints of Qwen3-MoE (arXiv 2505.09388): experts, and queries and keys normalised by head.

Dense layers may stand between sparse ones; they are segments of their own here.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Iterator, Mapping
from typing import Any

from modbrick.config import AttentionConfig, LayerConfig, SegmentConfig
from modbrick.convert.families.llama import (
    ATTENTION,
    BASE,
    FEED_FORWARD,
    OUTER,
)
from modbrick.convert.families.olmoe import EXPERTS, FUSED_EXPERTS
from modbrick.convert.format import Format, Row, Translation
from modbrick.convert.huggingface.buffers import ROTARY_BUFFERS
from modbrick.convert.huggingface.reading import (
    BalancedFields,
    HeadFields,
    read_attention,
    read_decoder,
    read_experts,
    read_layer,
    read_model,
    rms_norm,
    segment,
)
from modbrick.convert.huggingface.writing import write_experts, write_heads, write_objective
from modbrick.errors import InputError

ARCHITECTURE = "Qwen3MoeForCausalLM"


@dataclasses.dataclass(frozen=True)
class Qwen3MoeFields(BalancedFields, HeadFields):
    """Fields of `Qwen3MoeConfig`.

    Attributes:
      sliding_window: only if `use_sliding_window`.
      intermediate_size: hidden width of dense layers; `moe_intermediate_size`: of an expert.
      decoder_sparse_step: every how many layers one has experts.
      mlp_only_layers: indices of layers that have none all the same.
      norm_topk_prob: gates are divided by their sum.
      max_window_layers: how many layers come before those with a window, in early releases.
    """

    vocab_size: int = 151936
    hidden_size: int = 2048
    intermediate_size: int = 6144
    num_hidden_layers: int = 24
    max_position_embeddings: int = 32768
    num_key_value_heads: int | None = 4
    attention_bias: bool = False
    use_sliding_window: bool = False
    sliding_window: int | None = 4096
    max_window_layers: int | None = None
    decoder_sparse_step: int = 1
    moe_intermediate_size: int = 768
    num_experts_per_tok: int = 8
    num_experts: int = 128
    norm_topk_prob: bool = False
    mlp_only_layers: tuple[int, ...] | None = None

    def is_sparse(self, layer: int) -> bool:
        """Returns whether a layer has experts."""
        return (
            layer not in (self.mlp_only_layers or ())
            and self.num_experts > 0
            and (layer + 1) % self.decoder_sparse_step == 0
        )


def layer_rows(layer: LayerConfig, experts: tuple[Row, ...] = EXPERTS) -> tuple[Row, ...]:
    """Returns the rows of a layer, dense or sparse; `experts` are those of its bank."""
    return (*ATTENTION, *(experts if layer.feed_forward.experts else FEED_FORWARD))


def read_config(data: Mapping[str, Any], where: str) -> Translation:
    """Translates a `config.json`.

    Raises:
      InputError: settings that this library would compute otherwise, by name.
    """
    fields = read_decoder(
        Qwen3MoeFields,
        data,
        where,
        architecture=ARCHITECTURE,
        aliases={"num_local_experts": "num_experts"},
        neutral={"use_qk_norm": True, "qk_norm": True},
    )
    if fields.use_sliding_window and fields.max_window_layers is not None:
        raise InputError(
            f"{where}: max_window_layers is {fields.max_window_layers} with use_sliding_window, "
            "which releases of the original read differently; remove it if all layers have a window"
        )
    if fields.decoder_sparse_step < 1:
        raise InputError(f"{where}: decoder_sparse_step is {fields.decoder_sparse_step}, below 1")
    attention = read_attention(
        fields,
        where,
        bias=fields.attention_bias,
        query_key_norm=rms_norm(fields.rms_norm_eps, where),
        query_key_norm_axis="head",
        window=fields.sliding_window if fields.use_sliding_window else None,
    )
    model = read_model(fields, _segments(fields, attention, where), where)
    return Translation(model, fields.objective(where))


def _segments(
    fields: Qwen3MoeFields, attention: AttentionConfig, where: str
) -> Iterator[SegmentConfig]:
    """Yields the layers in order, equal neighbours together."""
    layers = range(fields.num_hidden_layers)
    if not layers:
        raise InputError(f"{where}: num_hidden_layers must be at least 1, got {len(layers)}")
    for sparse, run in itertools.groupby(layers, key=fields.is_sparse):
        if sparse:
            experts = read_experts(
                fields.num_experts,
                fields.num_experts_per_tok,
                where,
                renormalised=fields.norm_topk_prob,
            )
            hidden = fields.moe_intermediate_size
            layer = read_layer(fields, attention, where, hidden=hidden, experts=experts)
        else:
            layer = read_layer(fields, attention, where)
        yield from segment(layer, len(list(run)), where)


def write_config(translation: Translation) -> dict[str, Any]:
    """Returns the `config.json` of a model."""
    model = translation.model
    dense = [i for i, layer in enumerate(model.layers) if layer.feed_forward.experts is None]
    sparse = next((x.feed_forward for x in model.layers if x.feed_forward.experts), None)
    written = write_heads(model) | write_objective(translation)
    if dense:
        written["intermediate_size"] = model.layers[dense[0]].feed_forward.hidden
    if sparse is not None and sparse.experts is not None:
        written |= write_experts(sparse.experts, count="num_experts") | {
            "moe_intermediate_size": sparse.hidden,
            "norm_topk_prob": sparse.experts.router.gates == "renormalised",
        }
    attention = model.layers[0].attention
    return written | {
        "attention_bias": bool(attention.biases),
        "use_sliding_window": attention.window is not None,
        "sliding_window": attention.window,
        "decoder_sparse_step": 1,
        "mlp_only_layers": dense,
    }


FORMAT = Format(
    name="qwen3_moe",
    model_type="qwen3_moe",
    architecture=ARCHITECTURE,
    outer=OUTER,
    layer=layer_rows,
    read_config=read_config,
    write_config=write_config,
    other_layers=(functools.partial(layer_rows, experts=FUSED_EXPERTS),),
    base=BASE,
    ignored=ROTARY_BUFFERS,
)
