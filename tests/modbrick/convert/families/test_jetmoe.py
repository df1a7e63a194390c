"""The format of JetMoE."""

from __future__ import annotations

from typing import ClassVar

from modbrick.convert.families.jetmoe import FORMAT
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
