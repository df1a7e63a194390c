"""The format of Llama."""

from __future__ import annotations

from pathlib import Path

from modbrick.convert.families.llama import FORMAT
from tests.contracts.conversion import check_own_config, check_round_trip, check_rows
from tests.contracts.transformers_parity import (
    COMMON_REFUSALS,
    HEAD_REFUSALS,
    check_config_survives,
    check_greedy_with_a_cache,
    check_hostile_values,
    check_parity,
    check_refusals,
    config_of,
    each_fixture,
    imported,
)


@each_fixture("llama")
def test_computes_what_the_original_does(directory: Path, tmp_path: Path) -> None:
    check_parity(directory, tmp_path)


@each_fixture("llama")
def test_greedy_continuation_with_a_cache(directory: Path) -> None:
    check_greedy_with_a_cache(directory)


@each_fixture("llama")
def test_the_config_survives(directory: Path) -> None:
    check_config_survives(FORMAT, directory)
    check_own_config(FORMAT, imported(directory).config)


@each_fixture("llama")
def test_every_value_has_one_place_and_returns_to_it(directory: Path, tmp_path: Path) -> None:
    check_rows(FORMAT, imported(directory).config)
    check_round_trip(directory, FORMAT, tmp_path)


def test_hostile_values_end_cleanly() -> None:
    check_hostile_values(FORMAT, "llama")


def test_refusals() -> None:
    check_refusals(FORMAT, "llama", COMMON_REFUSALS + HEAD_REFUSALS)


def test_buffers_of_early_releases_are_no_weights() -> None:
    assert FORMAT.ignored is not None
    assert FORMAT.ignored.fullmatch("model.layers.31.self_attn.rotary_emb.inv_freq")
    assert not FORMAT.ignored.fullmatch("model.layers.31.self_attn.q_proj.weight")


def test_keys_that_do_not_matter_are_left_aside() -> None:
    config = config_of("llama")
    plain = FORMAT.read_config(config, "config.json")
    more = {"pretraining_tp": 2, "use_cache": False, "temperature": 0.7, "eos_token_id": [2, 3]}
    assert FORMAT.read_config(config | more, "config.json") == plain
