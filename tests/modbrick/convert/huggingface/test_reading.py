"""Reading of configs, as all families of the transformers library share it."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from modbrick.convert.huggingface.reading import (
    BalancedFields,
    HeadFields,
    read_attention,
    read_decoder,
    read_experts,
    read_layer,
    read_model,
    segment,
)
from modbrick.errors import InputError


@dataclasses.dataclass(frozen=True)
class Fields(BalancedFields, HeadFields):
    """A family."""

    num_attention_heads: int = 4
    hidden_size: int = 24


def fields_of(**settings: Any) -> Fields:
    return read_decoder(
        Fields,
        settings,
        "config.json",
        architecture="FamilyForCausalLM",
        aliases={"n_embd": "hidden_size"},
        ignored=["family_note"],
    )


def test_every_key_is_known() -> None:
    fields = fields_of(n_embd=32, dtype="bfloat16", family_note=1, transformers_version="5")
    assert (fields.hidden_size, fields.torch_dtype) == (32, "bfloat16")
    named = r"matter: mystery \(2\), riddle \('x'\); remove .* --ignore_keys=mystery,riddle$"
    with pytest.raises(InputError, match=named):
        fields_of(riddle="x", mystery=2)
    with pytest.raises(InputError, match="did you mean 'rms_norm_eps'"):
        fields_of(rms_norm_epss=1e-5)
    assert fields_of(tie_word_embeddings=None, norm_topk_probs=None).tie_word_embeddings is False
    assert fields_of(rope_scaling=False, rope_parameters={}).rope_scaling is None
    for both in ({"dtype": "half", "torch_dtype": None}, {"torch_dtype": "half", "dtype": None}):
        assert fields_of(**both).torch_dtype == "half"
    with pytest.raises(InputError, match="dtype and torch_dtype are the same thing, and differ"):
        fields_of(dtype="half", torch_dtype="float")


def test_the_width_of_a_head_can_be_free() -> None:
    assert fields_of().head_width("config.json") == 6
    assert fields_of(head_dim=10).head_width("config.json") == 10
    with pytest.raises(InputError, match=r"hidden_size \(26\) does not divide into 4 heads"):
        fields_of(hidden_size=26).head_width("config.json")


def test_the_parts_make_a_model() -> None:
    fields = fields_of(
        num_key_value_heads=2, tie_word_embeddings=True, initializer_range=0.5, torch_dtype=None
    )
    attention = read_attention(fields, "config.json", bias=True, theta=7.0, window=3)
    assert (attention.kind, attention.window, len(attention.biases)) == ("softmax", 3, 4)
    assert attention.rope is not None
    assert attention.rope.base == 7.0
    experts = read_experts(5, 2, "config.json", renormalised=False, output_bias=True)
    layer = read_layer(fields, attention, "config.json", hidden=9, experts=experts)
    model = read_model(
        fields, segment(layer, 3, "config.json"), "config.json", logit_multiplier=0.5
    )
    assert (model.width, model.tied_head, model.dtype) == (24, True, "float32")
    assert (model.initial_scale, model.logit_multiplier) == (0.5, 0.5)
    assert model.layers == (layer,) * 3
    assert layer.feed_forward.gated
    assert (layer.feed_forward.hidden, layer.feed_forward.experts) == (9, experts)


def test_losses_count_where_router_logits_are_returned() -> None:
    on = {"output_router_logits": True, "router_aux_loss_coef": 0.25}
    assert fields_of(**on).objective("config.json") == {"pooled_switch": 0.25}
    for off in ({"output_router_logits": False}, {"router_aux_loss_coef": None}):
        assert fields_of(**(on | off)).objective("config.json") == {}
    with pytest.raises(InputError, match="router_aux_loss_coef is inf"):
        fields_of(router_aux_loss_coef=float("inf")).objective("config.json")
