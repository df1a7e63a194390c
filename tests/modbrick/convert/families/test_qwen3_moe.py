"""The format of Qwen3-MoE."""

from __future__ import annotations

from pathlib import Path

from modbrick.convert.families.qwen3_moe import FORMAT
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


@each_fixture("qwen3_moe")
def test_computes_what_the_original_does(directory: Path, tmp_path: Path) -> None:
    check_parity(directory, tmp_path)


@each_fixture("qwen3_moe")
def test_greedy_continuation_with_a_cache(directory: Path) -> None:
    check_greedy_with_a_cache(directory)


@each_fixture("qwen3_moe")
def test_the_config_survives(directory: Path) -> None:
    check_config_survives(FORMAT, directory)
    check_own_config(FORMAT, imported(directory).config)


@each_fixture("qwen3_moe")
def test_every_value_has_one_place_and_returns_to_it(directory: Path, tmp_path: Path) -> None:
    check_rows(FORMAT, imported(directory).config)
    check_round_trip(directory, FORMAT, tmp_path)


def test_hostile_values_end_cleanly() -> None:
    check_hostile_values(FORMAT, "qwen3_moe")


def test_refusals() -> None:
    window = {"use_sliding_window": True, "sliding_window": 4}
    own: Refusals = [
        (window | {"max_window_layers": 2}, "max_window_layers is 2 with use_sliding_window"),
        (window | {"sliding_window": 0}, "window must be at least 1, got 0"),
        ({"decoder_sparse_step": 0}, "decoder_sparse_step is 0, below 1"),
        ({"num_experts": 3}, "the same thing, and differ"),
    ]
    refusals = COMMON_REFUSALS + HEAD_REFUSALS + BALANCED_REFUSALS
    check_refusals(FORMAT, "qwen3_moe", refusals + own)


def test_dense_and_sparse_layers_are_segments() -> None:
    config = config_of("qwen3_moe") | {"num_hidden_layers": 7}

    def repeats(**changes: object) -> list[tuple[bool, int]]:
        model = FORMAT.read_config(config | changes, "config.json").model
        return [(s.layer.feed_forward.experts is not None, s.repeats) for s in model.segments]

    assert repeats(mlp_only_layers=[]) == [(True, 7)]
    assert repeats(mlp_only_layers=[0, 1, 6]) == [(False, 2), (True, 4), (False, 1)]
    assert repeats(mlp_only_layers=[], decoder_sparse_step=4) == [(False, 3), (True, 1), (False, 3)]
    assert repeats(mlp_only_layers=[], num_local_experts=0) == [(False, 7)]


def test_a_window_counts_only_if_it_is_switched_on() -> None:
    config = config_of("qwen3_moe") | {"sliding_window": 4}
    for switch, window in ((False, None), (True, 4)):
        data = config | {"use_sliding_window": switch}
        assert FORMAT.read_config(data, "config.json").model.layers[0].attention.window == window
