"""The format of Granite-MoE."""

from __future__ import annotations

from typing import ClassVar

import pytest

from modbrick.convert.families.granitemoe import FORMAT, reciprocal
from tests.contracts.transformers_family import TransformersFamily
from tests.contracts.transformers_parity import BALANCED_REFUSALS, HEAD_REFUSALS, Refusals


class TestGraniteMoe(TransformersFamily):
    form = FORMAT
    refusals: ClassVar[Refusals] = [
        *HEAD_REFUSALS,
        *BALANCED_REFUSALS,
        ({"logits_scaling": 0.0}, "logits_scaling is 0"),
        ({"shared_intermediate_size": 8}, r"shared_intermediate_size \(8\)"),
        ({"num_experts_per_tok": 0}, "got 0"),
    ]


@pytest.mark.parametrize("value", [*range(1, 200), 0.7, 0.0078125, 13.123456789, 1e-7, 1 / 3])
def test_reciprocals_of_what_people_write_are_exact(value: float) -> None:
    assert reciprocal(1.0 / value) == value


def test_a_reciprocal_that_does_not_exist_is_the_nearest() -> None:
    assert reciprocal(0.0) == 0.0
    assert reciprocal(0.1234567890123456) == pytest.approx(1 / 0.1234567890123456, rel=1e-15)
