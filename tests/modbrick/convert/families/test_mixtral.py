"""The format of Mixtral."""

from __future__ import annotations

from typing import ClassVar

from modbrick.convert.families.mixtral import FORMAT
from tests.contracts.transformers_family import TransformersFamily
from tests.contracts.transformers_parity import (
    BALANCED_REFUSALS,
    HEAD_REFUSALS,
    Refusals,
    config_of,
)


class TestMixtral(TransformersFamily):
    form = FORMAT
    refusals: ClassVar[Refusals] = [
        *HEAD_REFUSALS,
        *BALANCED_REFUSALS,
        ({"num_local_experts": 1}, r"number of experts \(1\), got 2"),
        ({"num_experts": 3}, "the same thing, and differ"),
        ({"attention_bias": True}, r"attention_bias \(True\)"),
    ]


def test_the_loss_of_balance_counts_where_the_original_adds_it() -> None:
    config = config_of("mixtral")
    assert FORMAT.read_config(config, "config.json").objective == {"pooled_switch": 0.2}
    for change in ({"output_router_logits": False}, {"router_aux_loss_coef": 0.0}):
        assert FORMAT.read_config(config | change, "config.json").objective == {}
