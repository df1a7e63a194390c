"""The family whose names an adapter uses, and the sites that its modules are."""

from __future__ import annotations

import dataclasses

import pytest

from modbrick.config import RopeConfig
from modbrick.convert.peft.family import PREFIX, modules_of
from modbrick.convert.peft.module import Module, Share
from modbrick.errors import InputError
from tests.modbrick.convert.peft.adapters import READ
from tests.modbrick.convert.peft.adapters import model_of as model

QUERY = "model.layers.1.self_attn.q_proj"


@pytest.mark.parametrize("family", READ)
def test_a_model_says_its_family(family: str) -> None:
    named = modules_of(model(family), family, [])
    tensors = [f"{PREFIX}{name}.lora_A.weight" for name in named]
    assert modules_of(model(family), None, tensors) == named


def test_modules_are_sites() -> None:
    llama = modules_of(model("llama"), "llama", [])
    query = Module(QUERY, 16, 16, (Share("layer.1.attention.query", 0, 16),), biased=True)
    assert llama[QUERY] == query
    down = llama["model.layers.0.mlp.down_proj"]
    assert (down.input_width, down.output_width) == (12, 16)
    assert down.inputs == "layer.0.feed_forward.hidden"
    fused = modules_of(model("jetmoe"), "jetmoe", [])["model.layers.0.self_attention.kv_proj"]
    assert fused.shares == (
        Share("layer.0.attention.key", 0, 8),
        Share("layer.0.attention.value", 8, 16),
    )
    assert fused.output_width == 16


def test_obstacles() -> None:
    llama = modules_of(model("llama"), "llama", [])
    assert llama["model.embed_tokens"].obstacle == "no linear map"
    assert llama["model.norm"].obstacle == "no linear map"
    assert llama["lm_head"].obstacle.startswith("the head")
    mixtral = modules_of(model("mixtral"), "mixtral", [])
    block = "model.layers.0.block_sparse_moe"
    assert mixtral[f"{block}.gate"].obstacle.startswith("a router")
    assert f"{block}.experts.2.w1" not in mixtral  # in files only
    granite = modules_of(model("granitemoe"), "granitemoe", [])
    assert granite[f"{block}.input_linear"].obstacle.startswith("a bank of experts")


def test_families_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InputError, match="no format 'nope'"):
        modules_of(model("llama"), "nope", [])
    (segment,) = model("llama").segments
    rope = RopeConfig(fraction=0.5)
    attention = dataclasses.replace(segment.layer.attention, rope=rope)
    layer = dataclasses.replace(segment.layer, attention=attention)
    ours = model("llama").replace(segments=(dataclasses.replace(segment, layer=layer),))
    with pytest.raises(InputError, match="of no family"):
        modules_of(ours, None, [])
