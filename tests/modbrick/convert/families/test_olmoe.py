"""The format of OLMoE."""

from __future__ import annotations

from pathlib import Path

from modbrick.convert.families.olmoe import FORMAT
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


@each_fixture("olmoe")
def test_computes_what_the_original_does(directory: Path, tmp_path: Path) -> None:
    check_parity(directory, tmp_path)


@each_fixture("olmoe")
def test_greedy_continuation_with_a_cache(directory: Path) -> None:
    check_greedy_with_a_cache(directory)


@each_fixture("olmoe")
def test_the_config_survives(directory: Path) -> None:
    check_config_survives(FORMAT, directory)
    check_own_config(FORMAT, imported(directory).config)


@each_fixture("olmoe")
def test_every_value_has_one_place_and_returns_to_it(directory: Path, tmp_path: Path) -> None:
    check_rows(FORMAT, imported(directory).config)
    check_round_trip(directory, FORMAT, tmp_path)


def test_hostile_values_end_cleanly() -> None:
    check_hostile_values(FORMAT, "olmoe")


def test_refusals() -> None:
    own: Refusals = [
        ({"clip_qkv": -1.0}, "clip must be positive, got -1"),
        ({"hidden_size": 18}, "does not divide into"),
        ({"head_dim": 6}, "head_dim is 6, but the original has norms"),
        ({"num_experts_per_tok": 7}, r"number of experts \(6\), got 7"),
    ]
    of_heads = [refusal for refusal in HEAD_REFUSALS if "head_dim" not in refusal[0]]
    refusals = COMMON_REFUSALS + of_heads + BALANCED_REFUSALS
    check_refusals(FORMAT, "olmoe", refusals + own)


def test_gates_are_divided_by_their_sum_if_the_config_says_so() -> None:
    config = config_of("olmoe")
    for flag, gates in ((False, "probability"), (True, "renormalised")):
        model = FORMAT.read_config(config | {"norm_topk_prob": flag}, "config.json").model
        experts = model.layers[0].feed_forward.experts
        assert experts is not None
        assert experts.router.gates == gates
