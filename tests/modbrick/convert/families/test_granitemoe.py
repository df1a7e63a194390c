"""The format of Granite-MoE."""

from __future__ import annotations

from pathlib import Path

import pytest

from modbrick.convert.families.granitemoe import FORMAT, reciprocal
from tests.contracts.conversion import check_own_config, check_round_trip, check_rows
from tests.contracts.transformers_parity import (
    BALANCED_REFUSALS,
    COMMON_REFUSALS,
    HEAD_REFUSALS,
    Refusals,
    check_config_survives,
    check_greedy_with_a_cache,
    check_hostile_values,
    check_parity,
    check_refusals,
    each_fixture,
    imported,
)


@each_fixture("granitemoe")
def test_computes_what_the_original_does(directory: Path, tmp_path: Path) -> None:
    check_parity(directory, tmp_path)


@each_fixture("granitemoe")
def test_greedy_continuation_with_a_cache(directory: Path) -> None:
    check_greedy_with_a_cache(directory)


@each_fixture("granitemoe")
def test_the_config_survives(directory: Path) -> None:
    check_config_survives(FORMAT, directory)
    check_own_config(FORMAT, imported(directory).config)


@each_fixture("granitemoe")
def test_every_value_has_one_place_and_returns_to_it(directory: Path, tmp_path: Path) -> None:
    check_rows(FORMAT, imported(directory).config)
    check_round_trip(directory, FORMAT, tmp_path)


def test_hostile_values_end_cleanly() -> None:
    check_hostile_values(FORMAT, "granitemoe")


def test_refusals() -> None:
    own: Refusals = [
        ({"logits_scaling": 0.0}, "logits_scaling is 0"),
        ({"shared_intermediate_size": 8}, r"shared_intermediate_size \(8\)"),
        ({"num_experts_per_tok": 0}, "got 0"),
    ]
    refusals = COMMON_REFUSALS + HEAD_REFUSALS + BALANCED_REFUSALS
    check_refusals(FORMAT, "granitemoe", refusals + own)


@pytest.mark.parametrize("value", [*range(1, 200), 0.7, 0.0078125, 13.123456789, 1e-7, 1 / 3])
def test_reciprocals_of_what_people_write_are_exact(value: float) -> None:
    assert reciprocal(1.0 / value) == value


def test_a_reciprocal_that_does_not_exist_is_the_nearest() -> None:
    assert reciprocal(0.0) == 0.0
    assert reciprocal(0.1234567890123456) == pytest.approx(1 / 0.1234567890123456, rel=1e-15)
