"""Checkpoints of the original ModuleFormer, github.com/IBM/ModuleFormer."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any, Literal

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
from modbrick.convert.format import Format, Row, Translation, row
from modbrick.convert.huggingface.fields import (
    ACTIVATIONS,
    choice,
    computation_dtype,
    name_of,
    read_fields,
)
from modbrick.convert.transforms import TRANSPOSED
from modbrick.errors import InputError, located

_OUTER = (
    row("embedding", "transformer.wte.weight"),
    row("norm.scale", "transformer.ln_f.weight"),
    row("norm.bias", "transformer.ln_f.bias"),
    row("head.weight", "lm_head.weight", TRANSPOSED),
)

_H = "transformer.h.{layer}."
_LAYER = (
    row("attention_norm.scale", _H + "ln_1.weight"),
    row("attention_norm.bias", _H + "ln_1.bias"),
    row("attention.query.weight", _H + "attn.q_proj.experts.weight"),
    row("attention.output.weight", _H + "attn.q_proj.output_experts.weight"),
    row("attention.key.weight", _H + "attn.k_proj.weight", TRANSPOSED),
    row("attention.key.bias", _H + "attn.k_proj.bias"),
    row("attention.value.weight", _H + "attn.v_proj.weight", TRANSPOSED),
    row("attention.value.bias", _H + "attn.v_proj.bias"),
    row("feed_forward_norm.scale", _H + "ln_2.weight"),
    row("feed_forward_norm.bias", _H + "ln_2.bias"),
    row("feed_forward.up.weight", _H + "mlpf.experts.weight"),
    row("feed_forward.down.weight", _H + "mlpf.output_experts.weight"),
)


def _router(path: str, name: str, kind: str) -> tuple[Row, ...]:
    hidden, output = ("w_gate", "") if kind == "gmm" else ("w_gate.0", "w_gate.3")
    if kind == "linear":
        hidden, output = "", "w_gate.0"
    return (
        row(f"{path}.hidden.weight", f"{name}.{hidden}.weight", TRANSPOSED),
        row(f"{path}.hidden.bias", f"{name}.{hidden}.bias"),
        row(f"{path}.output.weight", f"{name}.{output}.weight", TRANSPOSED),
        row(f"{path}.centroids", f"{name}.expert_centroids"),
        row(f"{path}.temperature", f"{name}.temperature"),
    )


def _layer(layer: LayerConfig) -> tuple[Row, ...]:
    """Only the names of routers depend on the layer."""
    rows: tuple[Row, ...] = _LAYER
    if (experts := layer.attention.experts) is not None:
        rows += _router("attention.router", _H + "attn.q_proj.gate", experts.router.kind)
    if (experts := layer.feed_forward.experts) is not None:
        rows += _router("feed_forward.router", _H + "mlpf.gate", experts.router.kind)
    return rows


ALIASES = {"hidden_size": "n_embd", "num_attention_heads": "n_head", "num_hidden_layers": "n_layer"}

NORM_EPSILON = 1e-5
"""Of every LayerNorm: the original builds them all with PyTorch's default, and nothing reads its
`layer_norm_epsilon`."""

SWITCH_Z_SHARE = 0.1
"""The original's `switch` loss is the switch loss plus this much of the router z-loss."""

ARCHITECTURE = "ModuleFormerForCausalLM"

_ROUTERS: Mapping[str, Literal["mlp", "linear", "gmm"]] = {
    "mlp": "mlp",
    "linear": "linear",
    "gmm": "gmm",
}
_LOSSES: Mapping[str, Mapping[str, float]] = {
    "mi": {"load_balancing": 1.0},
    "switch": {"switch": 1.0, "router_z": SWITCH_Z_SHARE},
}


@dataclasses.dataclass(frozen=True)
class ModuleFormerConfig:
    """The fields of `config.json` that the original reads, under its names and with its defaults.

    Attributes:
      att_hidden: width of all heads of one attention expert together.
      block_size, history_length: tokens of a training step and of the history before it.
      k_att, k_mlp: experts per token.
      gating_size: hidden width of `mlp` routers, width of the centroids of `gmm` routers.
      sample_topk: experts sampled in training.
      aux_loss_type: `mi` (mutual information) or `switch`.
      resid_pdrop, embd_pdrop, moe_pdrop: dropout, which there is none of here. (The original
        declares one of attention weights, `attn_pdrop`, and never applies it.)
    """

    vocab_size: int = 50295
    block_size: int = 512
    history_length: int = 512
    n_embd: int = 1024
    n_layer: int = 24
    n_head: int = 8
    att_hidden: int = 512
    ffd_hidden: int = 2048
    activation_function: str = "gelu_new"
    resid_pdrop: float = 0.0
    embd_pdrop: float = 0.0
    moe_pdrop: float = 0.0
    sample_topk: int = 0
    gating_size: int = 256
    n_att_experts: int = 32
    k_att: int = 2
    n_mlp_experts: int = 32
    k_mlp: int = 2
    initializer_range: float = 0.02
    tie_word_embeddings: bool = False
    aux_loss_type: str = "mi"
    aux_loss_weight: float = 0.0
    gate_type: str = "mlp"
    torch_dtype: str | None = None

    @property
    def has_key_value(self) -> bool:
        """True if keys and values are projected: a single head of full width has none of it."""
        return not (self.n_head == 1 and self.att_hidden == self.n_embd)


def _read_config(data: Mapping[str, Any], where: str) -> Translation:
    original = read_fields(
        ModuleFormerConfig, data, where, architecture=ARCHITECTURE, aliases=ALIASES
    )
    return Translation(_model(original, where), _objective(original, where))


def _model(original: ModuleFormerConfig, where: str) -> ModelConfig:
    activation = choice(original.activation_function, ACTIVATIONS, "activation_function", where)
    if original.n_head < 1 or original.att_hidden % original.n_head:
        raise InputError(
            f"{where}: att_hidden ({original.att_hidden}) does not divide into "
            f"{original.n_head} heads (n_head)"
        )
    with located(where):
        router = RouterConfig(
            kind=choice(original.gate_type, _ROUTERS, "gate_type", where),
            hidden=original.gating_size,
            sample_top_k=original.sample_topk,
        )
        layer = LayerConfig(
            attention=AttentionConfig(
                heads=original.n_head,
                head_width=original.att_hidden // original.n_head,
                kind="stickbreaking",
                key_value="projected" if original.has_key_value else "identity",
                biases=("key", "value") if original.has_key_value else (),
                experts=ExpertsConfig(original.n_att_experts, original.k_att, router),
            ),
            feed_forward=FeedForwardConfig(
                hidden=original.ffd_hidden,
                activation=activation,
                experts=ExpertsConfig(original.n_mlp_experts, original.k_mlp, router),
            ),
            norm=NormConfig(epsilon=NORM_EPSILON),
        )
        return ModelConfig(
            vocabulary=original.vocab_size,
            width=original.n_embd,
            segments=(SegmentConfig(layer, original.n_layer),),
            norm=NormConfig(epsilon=NORM_EPSILON),
            context=original.block_size + original.history_length,
            tied_head=original.tie_word_embeddings,
            dtype=computation_dtype(original.torch_dtype, where),
            router_statistics="all",
            initial_scale=original.initializer_range,
        )


def _objective(original: ModuleFormerConfig, where: str) -> dict[str, float]:
    weight = original.aux_loss_weight
    shares = choice(original.aux_loss_type, _LOSSES, "aux_loss_type", where)
    if not 0 <= weight < math.inf:
        raise InputError(f"{where}: aux_loss_weight is {weight}, which is no weight of a loss")
    return {name: weight * share for name, share in shares.items()} if weight else {}


def _write_config(translation: Translation) -> dict[str, Any]:
    """Writes what the original can say; the loss too, where it is one of the original's two."""
    model = translation.model
    layer = model.segments[0].layer
    attention, feed_forward = layer.attention, layer.feed_forward
    fields: dict[str, Any] = {
        "vocab_size": model.vocabulary,
        "block_size": model.context - model.context // 2,
        "history_length": model.context // 2,
        "n_embd": model.width,
        "n_layer": sum(segment.repeats for segment in model.segments),
        "n_head": attention.heads,
        "att_hidden": attention.query_width,
        "ffd_hidden": feed_forward.hidden,
        "activation_function": name_of(feed_forward.activation, ACTIVATIONS, "activation"),
        "initializer_range": model.initial_scale,
        "tie_word_embeddings": model.tied_head,
    }
    if attention.experts is not None:
        router = attention.experts.router
        fields |= {
            "n_att_experts": attention.experts.count,
            "k_att": attention.experts.top_k,
            "gate_type": router.kind,
            "gating_size": router.hidden,
            "sample_topk": router.sample_top_k,
        }
    if feed_forward.experts is not None:
        fields |= {
            "n_mlp_experts": feed_forward.experts.count,
            "k_mlp": feed_forward.experts.top_k,
        }
    for loss, shares in _LOSSES.items():
        weight = next(iter(translation.objective.values()), 0.0)
        wanted = {name: weight * share for name, share in shares.items()}
        if weight and wanted == dict(translation.objective):
            fields |= {"aux_loss_type": loss, "aux_loss_weight": weight}
    return fields


FORMAT = Format(
    name="moduleformer",
    model_type="moduleformer",
    architecture=ARCHITECTURE,
    outer=_OUTER,
    layer=_layer,
    read_config=_read_config,
    write_config=_write_config,
    base="transformer.",
    layers_key="n_layer",
    # Constant triangles that the original keeps as buffers and files carry along.
    ignored=re.compile(r"transformer\.h\.\d+\.attn\.(mask|cum_weight)"),
)
