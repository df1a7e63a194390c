"""The format of OLMoE."""

from __future__ import annotations

from typing import ClassVar

from modbrick.convert.families.olmoe import FORMAT
from tests.contracts.transformers_family import TransformersFamily
from tests.contracts.transformers_parity import (
    BALANCED_REFUSALS,
    HEAD_REFUSALS,
    Refusals,
    config_of,
)


class TestOlmoe(TransformersFamily):
    form = FORMAT
    refusals: ClassVar[Refusals] = [
        *(refusal for refusal in HEAD_REFUSALS if "head_dim" not in refusal[0]),
        *BALANCED_REFUSALS,
        ({"clip_qkv": -1.0}, "clip must be positive, got -1"),
        ({"hidden_size": 18}, "does not divide into"),
        ({"head_dim": 6}, "head_dim is 6, but the original has norms"),
        ({"num_experts_per_tok": 7}, r"number of experts \(6\), got 7"),
    ]


def test_gates_are_divided_by_their_sum_if_the_config_says_so() -> None:
    config = config_of("olmoe")
    for flag, gates in ((False, "probability"), (True, "renormalised")):
        model = FORMAT.read_config(config | {"norm_topk_prob": flag}, "config.json").model
        experts = model.layers[0].feed_forward.experts
        assert experts is not None
        assert experts.router.gates == gates
