"""The format of Mistral."""

from __future__ import annotations

from pathlib import Path

from modbrick.convert.families.mistral import FORMAT
from tests.contracts.conversion import check_own_config, check_round_trip, check_rows
from tests.contracts.transformers_parity import (
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


@each_fixture("mistral")
def test_computes_what_the_original_does(directory: Path, tmp_path: Path) -> None:
    check_parity(directory, tmp_path)


@each_fixture("mistral")
def test_greedy_continuation_with_a_cache(directory: Path) -> None:
    check_greedy_with_a_cache(directory)


@each_fixture("mistral")
def test_the_config_survives(directory: Path) -> None:
    check_config_survives(FORMAT, directory)
    check_own_config(FORMAT, imported(directory).config)


@each_fixture("mistral")
def test_every_value_has_one_place_and_returns_to_it(directory: Path, tmp_path: Path) -> None:
    check_rows(FORMAT, imported(directory).config)
    check_round_trip(directory, FORMAT, tmp_path)


def test_hostile_values_end_cleanly() -> None:
    check_hostile_values(FORMAT, "mistral")


def test_refusals() -> None:
    # The original never gives Mistral a bias, whatever a config says.
    own: Refusals = [
        ({"sliding_window": 0}, "window must be at least 1, got 0"),
        ({"attention_bias": True}, r"attention_bias \(True\)"),
    ]
    check_refusals(FORMAT, "mistral", COMMON_REFUSALS + HEAD_REFUSALS + own)


def test_no_window_and_the_default_window_differ() -> None:
    config = config_of("mistral")
    windows = [
        FORMAT.read_config(data, "config.json").model.layers[0].attention.window
        for data in (
            config | {"sliding_window": None},
            {key: value for key, value in config.items() if key != "sliding_window"},
        )
    ]
    assert windows == [None, 4096]
