"""Settings that cannot take effect are refused before a run begins; harmless ones are remarked."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from modbrick.bricks import BrickConfig, LoRA
from modbrick.checkpoints import CheckpointConfig
from modbrick.config import ModelConfig
from modbrick.config.families import dense
from modbrick.data import DataConfig
from modbrick.errors import InputError
from modbrick.execution import ExecutionConfig
from modbrick.objective import CoefficientConfig, ObjectiveConfig
from modbrick.optimizer import (
    ConstantSchedule,
    CosineSchedule,
    GroupConfig,
    MuonConfig,
    OptimizerConfig,
    PowerConfig,
    PowerSchedule,
    WarmupStableDecaySchedule,
    schedule,
)
from modbrick.training.effect import require_effect
from modbrick.training.run_config import EvaluationConfig, LoggingConfig, RunConfig, TrainingConfig
from tests.configs import tiny
from tests.configs.test_presets import PRESETS, run_of

RUN = dataclasses.replace(
    tiny.get_config(), data=DataConfig(path="data", sequence_length=32, batch_size=4)
)
DENSE = dense(vocabulary=64, width=16, layers=1, heads=2, feed_forward_width=16)
POWER = PowerConfig(batch_size=4, tokens_per_step=128)
BRICK = BrickConfig(("layer.*.attention.query",), LoRA(rank=2))


def changed(**sections: Any) -> RunConfig:
    """RUN with fields of sections changed, or sections replaced."""
    new = {
        name: dataclasses.replace(getattr(RUN, name), **value)
        if isinstance(value, dict) and name not in ("bricks", "brick_sets")
        else value
        for name, value in sections.items()
    }
    return dataclasses.replace(RUN, **new)


def remarks(**sections: Any) -> list[str]:
    config = changed(**sections)
    return require_effect(config, [config.data.sequence_length])


def softmax() -> ModelConfig:
    (segment,) = DENSE.segments
    attention = dataclasses.replace(segment.layer.attention, kind="softmax")
    layer = dataclasses.replace(segment.layer, attention=attention)
    return DENSE.replace(segments=(dataclasses.replace(segment, layer=layer),))


def warmed(kind: Any, **fields: Any) -> dict[str, Any]:
    return {"optimizer": {"schedule": kind(**fields)}}


def weighed(**weights: Any) -> dict[str, Any]:
    return {"objective": ObjectiveConfig(**weights)}


REFUSED = [
    ("training.seed", {"training": {"seed": 2**32}}),
    ("training.seed", {"training": {"seed": -(2**31) - 1}}),
    ("training.initial_checkpoint", {"training": {"initial_checkpoint": ""}}),
    ("logging.wandb is empty", {"logging": {"wandb": ""}}),
    ("bricks.other", {"bricks": {"one": BRICK, "other": BRICK}, "brick_sets": {"text": "one"}}),
    ("schedule.decay_steps 0", warmed(CosineSchedule, decay_steps=0)),
    ("schedule: 1 decay_steps", warmed(WarmupStableDecaySchedule, decay_steps=1)),
    ("schedule.decay_steps 0", warmed(WarmupStableDecaySchedule, decay_steps=0)),
    ("schedule: 1 decay_steps", warmed(WarmupStableDecaySchedule, warm_up_steps=11)),
    ("schedule: 1 decay_steps", warmed(PowerSchedule, power=POWER, warm_up_steps=11)),
    ("optimizer.muon", {"optimizer": {"muon": MuonConfig(momentum=0.9)}}),
    (
        "optimizer.max_skipped_in_a_row",
        {"optimizer": {"skip_non_finite": False, "max_skipped_in_a_row": 3}},
    ),
    ("optimizer.groups[0] changes", {"optimizer": {"groups": (GroupConfig(("embedding",)),)}}),
    ("objective.switch is a loss", {"model": DENSE, **weighed(switch=0.1)}),
    (
        "objective.router_z is a loss",
        {"model": DENSE, **weighed(router_z=CoefficientConfig(0.0, 1.0, 0, 9))},
    ),
    ("objective.switch would end at", weighed(switch=CoefficientConfig(0.0, 1.0, 12, 13))),
    ("objective.router_z would end", weighed(router_z=CoefficientConfig(0.0, 1.0, 2, 99))),
    (
        "execution.attention_tolerance",
        {"model": softmax(), "execution": ExecutionConfig(attention_tolerance=0.1), **weighed()},
    ),
    ("execution.exchange_capacity", {"execution": ExecutionConfig(exchange_capacity=2.0)}),
    ("checkpoint.best_metric", {"checkpoint": CheckpointConfig(best_metric="accuracy")}),
    ("checkpoint.best_mode", {"checkpoint": CheckpointConfig(best_mode="max")}),
    ("checkpoint.keep_every 5", {"checkpoint": CheckpointConfig(every=3, keep_every=5)}),
    ("checkpoint.keep_every 5", {"checkpoint": CheckpointConfig(every=0, keep_every=5)}),
    ("data.mixture: the share of b", {"data": {"mixture": {"a": 1.0, "b": 1e-6}}}),
    ("data.sequence_length 33 is above model.context 32", {"data": {"sequence_length": 33}}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "change"), REFUSED)
def test_what_cannot_take_effect_is_refused_by_name(name: str, change: dict[str, Any]) -> None:
    """Each was taken without a word before, or failed late and without the name."""
    if "logging" not in change:
        change = {"logging": {"every": 1}, "evaluation": {"every": 3}, **change}
    with pytest.raises(InputError) as refused:
        remarks(**change)
    assert name in str(refused.value)
    assert "\n" not in str(refused.value)


TAKEN = [
    {"training": {"seed": -1}},
    {"training": {"seed": 2**32 - 1}},
    warmed(ConstantSchedule, warm_up_steps=11),
    warmed(CosineSchedule, warm_up_steps=11),
    warmed(CosineSchedule, end_factor=1.0, decay_steps=0),
    warmed(WarmupStableDecaySchedule),
    warmed(WarmupStableDecaySchedule, warm_up_steps=10),
    warmed(PowerSchedule, power=POWER, decay_steps=0),
    {"training": {"steps": 1}, **warmed(WarmupStableDecaySchedule)},
    {"optimizer": {"kind": "muon", "muon": MuonConfig(momentum=0.9)}},
    {"optimizer": {"groups": (GroupConfig(("embedding",), 0.0),)}},
    {"optimizer": {"groups": (GroupConfig(("*",), 0.1), GroupConfig(("head",)))}},
    warmed(CosineSchedule, decay_steps=1),
    weighed(switch=CoefficientConfig(0.0, 1.0, 3, 12)),
    weighed(switch=CoefficientConfig(0.5, 0.5)),
    {"model": DENSE, **weighed(switch=CoefficientConfig(0.0, 0.0))},
    {
        "execution": ExecutionConfig(
            attention_tolerance=0.1, expert_parallelism="exchange", exchange_capacity=2.0
        )
    },
    {
        "checkpoint": CheckpointConfig(every=3, keep_best=1, best_metric="x", best_mode="max"),
        "evaluation": {"every": 3},
    },
    {"checkpoint": CheckpointConfig(every=2, keep_every=3)},
    {"checkpoint": CheckpointConfig(every=1000, keep_every=10_000)},  # a preset that is tried out
    {"data": {"mixture": {"a": 1.0, "b": 1e-4}}},
]


@pytest.mark.parametrize("change", TAKEN)
def test_what_takes_effect_is_taken_without_a_word(change: dict[str, Any]) -> None:
    quiet = {"logging": {"every": 1}, "evaluation": {"every": 0}}
    assert remarks(**{**quiet, **change}) == []


@pytest.mark.parametrize(
    ("said", "change"),
    [
        ("evaluation.every 99 is beyond the 12", {"evaluation": EvaluationConfig(every=99)}),
        ("logging.every 100 is beyond the 12 steps", {"logging": LoggingConfig(every=100)}),
        ("the warm-up of 12 steps is the", warmed(ConstantSchedule, warm_up_steps=12)),
        ("the warm-up of 12 steps is the", warmed(CosineSchedule, warm_up_steps=12)),
        ("data.seed 3 decides nothing", {"data": {"seed": 3, "shuffle": False}}),
        (
            "schedule.power.tokens_per_step is 64, of the data 128",
            warmed(PowerSchedule, power=PowerConfig(4, 64)),
        ),
        (
            "schedule.power.batch_size is 5, of the data 4",
            warmed(PowerSchedule, power=PowerConfig(5, 128)),
        ),
    ],
)  # fmt: skip
def test_what_is_harmless_is_said_in_a_line(said: str, change: dict[str, Any]) -> None:
    quiet = {"logging": {"every": 1}, "evaluation": {"every": 3}}
    (line,) = remarks(**{**quiet, **change})
    assert said in line


@pytest.mark.parametrize("name", PRESETS)
def test_presets_say_nothing(name: str) -> None:
    config = run_of(name)
    assert isinstance(config, RunConfig)
    assert require_effect(config, [config.data.sequence_length]) == []


@pytest.mark.parametrize("steps", [*range(2, 12), 19, 20, 30])
@pytest.mark.parametrize("kind", ["warmup_stable_decay", "power"])
def test_a_tenth_of_a_short_run_is_a_decay_too(kind: str, steps: int) -> None:
    plan = PowerSchedule(power=POWER) if kind == "power" else WarmupStableDecaySchedule()
    course = schedule(OptimizerConfig(learning_rate=1e-3, schedule=plan), steps)
    assert float(course(steps - 1)) < 0.99 * float(course(max(steps - 2 - steps // 10, 0)))


@pytest.mark.parametrize("weight", [-0.1, float("nan"), float("inf"), float("-inf")])
def test_weights_of_router_losses_are_not_negative(weight: float) -> None:
    names = [field.name for field in dataclasses.fields(ObjectiveConfig)]
    for name in names:
        with pytest.raises(InputError, match=f"{name} must be finite and not negative"):
            ObjectiveConfig(**{name: weight})
    for ends in ((weight, 1.0), (1.0, weight)):
        with pytest.raises(InputError, match="coefficient must be finite and not negative"):
            CoefficientConfig(*ends, 0, 9)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_numbers_that_are_none_are_refused(value: float) -> None:
    with pytest.raises(InputError, match="exponent"):
        PowerConfig(1, 1, exponent=value)
    with pytest.raises(InputError, match="exchange_capacity"):
        ExecutionConfig(expert_parallelism="exchange", exchange_capacity=value)
    with pytest.raises(InputError, match="end_factor"):
        CosineSchedule(end_factor=value)
    for field in ("learning_rate", "b1", "b2", "epsilon", "weight_decay", "max_gradient_norm"):
        with pytest.raises(InputError, match=field):
            dataclasses.replace(OptimizerConfig(), **{field: value})  # type: ignore[arg-type]


def test_the_fields_of_training_config_are_looked_at() -> None:
    """A new setting needs a thought about when it does nothing."""
    fields = {f.name for f in dataclasses.fields(TrainingConfig)}
    assert fields == {"steps", "seed", "microbatches", "initial_checkpoint", "frozen_dtype"}
