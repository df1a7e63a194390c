"""The family whose names an adapter uses, and the sites that its modules are."""

from __future__ import annotations

import dataclasses

import pytest

from modbrick.config import ModelConfig, RopeConfig
from modbrick.convert.peft.bank import prefixes
from modbrick.convert.peft.family import PREFIX, family_modules, form_of
from modbrick.convert.peft.module import Module, Share
from modbrick.errors import InputError
from tests.modbrick.convert.peft.adapters import READ
from tests.modbrick.convert.peft.adapters import model_of as model

QUERY = "model.layers.1.self_attn.q_proj"


def named(config: ModelConfig, family: str | None, tensors: list[str]) -> dict[str, Module]:
    return family_modules(form_of(config, family, tensors), config)


@pytest.mark.parametrize("family", READ)
def test_a_model_says_its_family(family: str) -> None:
    modules = named(model(family), family, [])
    tensors = [f"{PREFIX}{name}.lora_A.weight" for name in modules]
    assert named(model(family), None, tensors) == modules


def test_experts_say_their_family() -> None:
    for family, path in (("mixtral", "mlp"), ("granitemoe", "block_sparse_moe")):
        tensors = [f"{PREFIX}model.layers.0.{path}.experts.lora_A.weight"]
        assert f"model.layers.0.{path}.experts.down_proj" in named(model(family), None, tensors)


def test_modules_are_sites() -> None:
    llama = named(model("llama"), "llama", [])
    query = Module(QUERY, "linear", 16, 16, (Share("layer.1.attention.query", 0, 16),), biased=True)
    assert llama[QUERY] == query
    down = llama["model.layers.0.mlp.down_proj"]
    assert (down.input_width, down.output_width) == (12, 16)
    assert down.inputs == "layer.0.feed_forward.hidden"
    fused = named(model("jetmoe"), "jetmoe", [])["model.layers.0.self_attention.kv_proj"]
    assert fused.shares == (
        Share("layer.0.attention.key", 0, 8),
        Share("layer.0.attention.value", 8, 16),
    )
    assert fused.output_width == 16


def test_modules_outside_of_layers() -> None:
    granite = named(model("granitemoe"), "granitemoe", [])
    (embedding,) = granite["model.embed_tokens"].shares
    assert (embedding.address, embedding.multiplier) == ("embedding", 1.6)
    (head,) = granite["lm_head"].shares  # though it is tied
    assert (head.address, head.multiplier) == ("head", 1 / 3)
    norm = granite["model.norm"]
    assert (norm.kind, norm.shares) == ("norm", (Share("norm", 0, 16),))


def test_banks() -> None:
    name = "model.layers.1.mlp.experts"
    mixtral = named(model("mixtral"), "mixtral", [])
    fused, down = mixtral[f"{name}.gate_up_proj"], mixtral[f"{name}.down_proj"]
    assert fused.shares == (
        Share("layer.1.feed_forward.gate", 0, 12),
        Share("layer.1.feed_forward.up", 12, 24),
    )
    assert (fused.experts, fused.weight_shape) == (4, (24, 16))
    assert down.weight_shape == (16, 12)
    # The last of a module's weights that are adapted is the outermost.
    assert prefixes([fused, down]) == {fused.name: f"{name}.base_layer", down.name: name}
    assert prefixes([fused]) == {fused.name: name}


def test_obstacles() -> None:
    llama = named(model("llama"), "llama", [])
    assert llama["model.embed_tokens"].obstacle == "no linear map"
    assert llama["model.norm"].obstacle == "no linear map"
    mixtral = named(model("mixtral"), "mixtral", [])
    block = "model.layers.0.block_sparse_moe"
    assert mixtral[f"{block}.gate"].obstacle.startswith("a router")
    assert f"{block}.experts.2.w1" not in mixtral  # in files only
    granite = named(model("granitemoe"), "granitemoe", [])
    assert granite[f"{block}.input_linear"].obstacle.startswith("a bank of experts")


def test_families_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InputError, match="no format 'nope'"):
        named(model("llama"), "nope", [])
    (segment,) = model("llama").segments
    rope = RopeConfig(fraction=0.5)
    attention = dataclasses.replace(segment.layer.attention, rope=rope)
    layer = dataclasses.replace(segment.layer, attention=attention)
    ours = model("llama").replace(segments=(dataclasses.replace(segment, layer=layer),))
    with pytest.raises(InputError, match="of no family"):
        named(ours, None, [])
