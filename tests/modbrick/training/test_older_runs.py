"""Configs, identities and config files of before: read, and the same runs as then."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from configs.quickstart import get_config
from modbrick.config import (
    AttentionConfig,
    ExpertsConfig,
    FeedForwardConfig,
    LayerConfig,
    LinearScaling,
    Llama3Scaling,
    ModelConfig,
    NormConfig,
    RopeConfig,
    RouterConfig,
    SegmentConfig,
    YarnScaling,
)
from modbrick.config.files import load_config
from modbrick.data import DataConfig, Dataset
from modbrick.errors import InputError
from modbrick.execution import ExecutionConfig
from modbrick.objective import CoefficientConfig, ObjectiveConfig
from modbrick.optimizer import (
    ConstantSchedule,
    CosineSchedule,
    GroupConfig,
    OptimizerConfig,
    PowerConfig,
    PowerSchedule,
    Schedule,
    WarmupStableDecaySchedule,
)
from modbrick.schema import from_mapping, to_mapping
from modbrick.training.run_config import RunConfig, TrainingConfig, check_identity

OLDER = Path(__file__).parents[2] / "fixtures/older"
WRITTEN: dict[str, Any] = json.loads((OLDER / "runs.json").read_text())
DATASET = cast(Dataset, SimpleNamespace(fingerprint="f" * 64))

ROPES = {
    "without": None,
    "plain": RopeConfig(),
    "unused": RopeConfig(base=500.0),
    "linear": RopeConfig(fraction=0.5, scaling=LinearScaling(2.0)),
    "llama3": RopeConfig(base=5e5, scaling=Llama3Scaling(factor=8.0, original_context=64)),
    "yarn": RopeConfig(scaling=YarnScaling(factor=4.0, original_context=32, attention_factor=1.5)),
}
SCHEDULES: dict[str, Schedule] = {
    "without": CosineSchedule(),
    "plain": ConstantSchedule(warm_up_steps=2),
    "unused": ConstantSchedule(),
    "linear": CosineSchedule(warm_up_steps=2, decay_steps=5, end_factor=0.2),
    "llama3": WarmupStableDecaySchedule(decay_steps=3),
    "yarn": PowerSchedule(power=PowerConfig(4, 64), end_factor=0.0),
}
ROUTERS = {"without": RouterConfig("mlp", 8), "plain": RouterConfig("linear")}


def run(name: str) -> RunConfig:
    """The run that make_runs.py describes, in today's records."""
    layer = LayerConfig(
        AttentionConfig(2, 8, "softmax", rope=ROPES[name]),
        FeedForwardConfig(
            16, experts=ExpertsConfig(4, 2, ROUTERS.get(name, RouterConfig("gmm", 4)))
        ),
        NormConfig("rms", bias=False),
    )
    return RunConfig(
        model=ModelConfig(32, 16, (SegmentConfig(layer, 2),)),
        data=DataConfig("data", 8, 4),
        training=TrainingConfig(10),
        optimizer=OptimizerConfig(
            kind="muon" if name == "yarn" else "adamw",
            schedule=SCHEDULES[name],
            groups=(GroupConfig(("embedding",), weight_decay=0.0),),
            frozen=("layer.0.*",),
        ),
        objective=ObjectiveConfig(switch=CoefficientConfig(0.1, 0.0, last_step=5), router_z=0.01),
        execution=ExecutionConfig(attention_tolerance=0.01),
    )


@pytest.mark.parametrize("name", ROPES)
def test_a_config_of_before_is_the_same_run(name: str) -> None:
    read = from_mapping(RunConfig, WRITTEN[name]["config"])
    assert read == run(name)
    assert from_mapping(RunConfig, to_mapping(read)) == read


@pytest.mark.parametrize("name", ROPES)
def test_a_run_of_before_continues_and_says_what_it_did_not_know(name: str) -> None:
    saved, current = WRITTEN[name]["identity"], run(name).identity(DATASET)
    (line,) = check_identity(saved, current, [], "run")
    assert line.startswith('execution: unknown -> {"attention_tolerance": 0.01, ')
    assert check_identity(json.loads(json.dumps(current)), current, [], "run") == []


def test_what_differs_from_a_run_of_before_is_refused_all_the_same() -> None:
    current = run("yarn").identity(DATASET)
    saved = copy.deepcopy(WRITTEN["yarn"]["identity"])
    saved["model"]["segments"][0]["layer"]["attention"]["rope"]["factor"] = 2.0
    saved["optimizer"]["schedule"]["power"]["exponent"] = -0.5
    with pytest.raises(InputError) as refused:
        check_identity(saved, current, [], "run")
    assert "attention.rope.scaling.factor: 2.0 -> 4.0" in str(refused.value)
    assert "optimizer.schedule.power.exponent: -0.5 -> -0.51" in str(refused.value)
    assert "execution" not in str(refused.value)


def test_no_run_at_all_is_refused() -> None:
    with pytest.raises(InputError, match=r"model: null -> .*execution: null -> "):
        check_identity({}, run("plain").identity(DATASET), [], "run")


def test_an_identity_that_cannot_be_read_names_the_directory() -> None:
    saved = copy.deepcopy(WRITTEN["plain"]["identity"])
    saved["optimizer"]["momentum"] = 0.9
    with pytest.raises(InputError, match=r"^runs/a holds a run .*optimizer\.momentum: unknown key"):
        check_identity(saved, run("plain").identity(DATASET), [], "runs/a")


def test_a_config_file_of_before_describes_the_run_it_described() -> None:
    assert load_config(RunConfig, str(OLDER / "quickstart.py")) == get_config()
