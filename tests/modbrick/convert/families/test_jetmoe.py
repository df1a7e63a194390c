"""The format of JetMoE."""

from __future__ import annotations

from typing import ClassVar

import pytest

from modbrick.convert.families.jetmoe import FORMAT
from modbrick.errors import InputError
from tests.contracts.transformers_family import TransformersFamily
from tests.contracts.transformers_parity import Refusals, config_of


class TestJetMoe(TransformersFamily):
    form = FORMAT
    refusals: ClassVar[Refusals] = [
        ({"num_attention_heads": 7}, "num_attention_heads is 7, but"),
        ({"output_router_logits": True}, "counts routers of attention twice"),
        ({"activation_function": "swiglu"}, "activation_function 'swiglu' is not supported"),
        ({"kv_channels": 3}, "even number"),
        ({"num_local_experts": 1}, r"number of experts \(1\), got 2"),
    ]


def test_norms_of_layers_have_an_epsilon_of_their_own() -> None:
    model = FORMAT.read_config(config_of("jetmoe"), "config.json").model
    assert (model.norm.epsilon, model.layers[0].norm.epsilon) == (1e-3, 1e-6)


def test_keys_of_the_first_release() -> None:
    config = config_of("jetmoe")
    plain = FORMAT.read_config(config, "config.json")
    first = {"architectures": ["JetMoEForCausalLM"], "bias": True, "glu": True}
    first |= {"layer_norm_epsilon": 1e-5, "rotary_percent": 1.0, "num_layers": 2}
    assert FORMAT.read_config(config | first, "config.json") == plain
    for key, value in (("bias", False), ("rotary_percent", 0.5), ("num_layers", 3)):
        with pytest.raises(InputError, match=rf"matter: {key} \({value}\)"):
            FORMAT.read_config(config | first | {key: value}, "config.json")
