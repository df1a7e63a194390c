"""The format of Mixtral."""

from __future__ import annotations

from pathlib import Path

from modbrick.convert.families.mixtral import FORMAT
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
    config_of,
    each_fixture,
    imported,
)


@each_fixture("mixtral")
def test_computes_what_the_original_does(directory: Path, tmp_path: Path) -> None:
    check_parity(directory, tmp_path)


@each_fixture("mixtral")
def test_greedy_continuation_with_a_cache(directory: Path) -> None:
    check_greedy_with_a_cache(directory)


@each_fixture("mixtral")
def test_the_config_survives(directory: Path) -> None:
    check_config_survives(FORMAT, directory)
    check_own_config(FORMAT, imported(directory).config)


@each_fixture("mixtral")
def test_every_value_has_one_place_and_returns_to_it(directory: Path, tmp_path: Path) -> None:
    check_rows(FORMAT, imported(directory).config)
    check_round_trip(directory, FORMAT, tmp_path)


def test_hostile_values_end_cleanly() -> None:
    check_hostile_values(FORMAT, "mixtral")


def test_refusals() -> None:
    own: Refusals = [
        ({"router_jitter_noise": 0.1}, "router_jitter_noise is 0.1"),
        ({"num_local_experts": 1}, r"number of experts \(1\), got 2"),
        ({"num_experts": 3}, "the same thing, and differ"),
        ({"attention_bias": True}, r"attention_bias \(True\)"),
    ]
    refusals = COMMON_REFUSALS + HEAD_REFUSALS + BALANCED_REFUSALS
    check_refusals(FORMAT, "mixtral", refusals + own)


def test_the_loss_of_balance_counts_where_the_original_adds_it() -> None:
    config = config_of("mixtral")
    assert FORMAT.read_config(config, "config.json").objective == {"pooled_switch": 0.2}
    for change in ({"output_router_logits": False}, {"router_aux_loss_coef": 0.0}):
        assert FORMAT.read_config(config | change, "config.json").objective == {}
