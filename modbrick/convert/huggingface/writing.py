"""Writing the `config.json` of a decoder of the transformers library: what all families share."""

from __future__ import annotations

from typing import Any

from modbrick.config import ExpertsConfig, ModelConfig
from modbrick.convert.format import Translation
from modbrick.convert.huggingface.fields import ACTIVATIONS, name_of
from modbrick.convert.huggingface.rope import write_rope


def write_decoder(model: ModelConfig) -> dict[str, Any]:
    """Returns the fields of `DecoderFields`; the inverse of `read_rope` and `read_model`.

    The ids of special tokens are null: the library's defaults for them would be made up.
    """
    return {
        "vocab_size": model.vocabulary,
        "hidden_size": model.width,
        "num_hidden_layers": len(model.layers),
        "max_position_embeddings": model.context,
        "initializer_range": model.initial_scale,
        "rms_norm_eps": model.norm.epsilon,
        "tie_word_embeddings": model.tied_head,
        "attention_dropout": 0.0,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
        **write_rope(model.layers[0].attention.rope),
    }


def write_heads(model: ModelConfig) -> dict[str, Any]:
    """Returns the fields of `HeadFields`.

    Raises:
      InputError: an activation that has no name in the library.
    """
    layer = model.layers[0]
    return write_decoder(model) | {
        "num_attention_heads": layer.attention.heads,
        "num_key_value_heads": layer.attention.grouped_heads,
        "head_dim": layer.attention.head_width,
        "hidden_act": name_of(layer.feed_forward.activation, ACTIVATIONS, "activation"),
        "intermediate_size": layer.feed_forward.hidden,
    }


def write_experts(experts: ExpertsConfig | None, *, count: str) -> dict[str, Any]:
    """Returns the numbers of experts, under the family's name `count` for that of all.

    None is left out: the config then reads back with the family's default, not as the same model.
    """
    if experts is None:
        return {}
    return {count: experts.count, "num_experts_per_tok": experts.top_k}


def write_objective(translation: Translation) -> dict[str, Any]:
    """Returns the fields of `BalancedFields`."""
    weight = translation.objective.get("pooled_switch", 0.0)
    return {"output_router_logits": weight != 0, "router_aux_loss_coef": weight}
