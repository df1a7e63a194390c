"""The format of JetMoE."""

from __future__ import annotations

from pathlib import Path

from modbrick.convert.families.jetmoe import FORMAT
from tests.contracts.conversion import check_own_config, check_round_trip, check_rows
from tests.contracts.transformers_parity import (
    COMMON_REFUSALS,
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


@each_fixture("jetmoe")
def test_computes_what_the_original_does(directory: Path, tmp_path: Path) -> None:
    check_parity(directory, tmp_path)


@each_fixture("jetmoe")
def test_greedy_continuation_with_a_cache(directory: Path) -> None:
    check_greedy_with_a_cache(directory)


@each_fixture("jetmoe")
def test_the_config_survives(directory: Path) -> None:
    check_config_survives(FORMAT, directory)
    check_own_config(FORMAT, imported(directory).config)


@each_fixture("jetmoe")
def test_every_value_has_one_place_and_returns_to_it(directory: Path, tmp_path: Path) -> None:
    check_rows(FORMAT, imported(directory).config)
    check_round_trip(directory, FORMAT, tmp_path)


def test_hostile_values_end_cleanly() -> None:
    check_hostile_values(FORMAT, "jetmoe")


def test_refusals() -> None:
    own: Refusals = [
        ({"num_attention_heads": 7}, "num_attention_heads is 7, but"),
        ({"output_router_logits": True}, "counts routers of attention twice"),
        ({"activation_function": "swiglu"}, "activation_function 'swiglu' is not supported"),
        ({"kv_channels": 3}, "even number"),
        ({"num_local_experts": 1}, r"number of experts \(1\), got 2"),
    ]
    check_refusals(FORMAT, "jetmoe", COMMON_REFUSALS + own)


def test_norms_of_layers_have_an_epsilon_of_their_own() -> None:
    model = FORMAT.read_config(config_of("jetmoe"), "config.json").model
    assert (model.norm.epsilon, model.layers[0].norm.epsilon) == (1e-3, 1e-6)
