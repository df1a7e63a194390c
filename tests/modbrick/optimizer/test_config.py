"""Optimizer records: JSON both ways, and what they refuse."""

import json

import pytest

from modbrick.errors import InputError
from modbrick.optimizer import (
    ConstantSchedule,
    CosineSchedule,
    GroupConfig,
    OptimizerConfig,
    PowerConfig,
    PowerSchedule,
    ScheduleConfig,
)
from modbrick.schema import from_mapping, to_mapping

FULL = OptimizerConfig(
    kind="muon",
    schedule=PowerSchedule(
        power=PowerConfig(8, 1024), warm_up_steps=10, decay_steps=20, end_factor=0.5
    ),
    no_weight_decay=("vectors",),
    max_gradient_norm=None,
    groups=(GroupConfig(("embedding", "head"), 0.1, 0.0), GroupConfig(("layer.*.*.router",), 2.0)),
    frozen=("layer.0-1",),
)


@pytest.mark.parametrize("config", [OptimizerConfig(), FULL])
def test_json_round_trip(config):
    assert from_mapping(OptimizerConfig, json.loads(json.dumps(to_mapping(config)))) == config


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"learning_rat": 1.0}, "did you mean 'learning_rate'"),
        ({"kind": "adam"}, "did you mean 'adamw'"),
        ({"learning_rate": 0.0}, "learning_rate must be positive, got 0.0"),
        ({"learning_rate": float("nan")}, "learning_rate must be positive, got nan"),
        ({"b2": 1.0}, r"b2 must be in \[0, 1\), got 1.0"),
        ({"weight_decay": -0.1}, "weight_decay must not be negative"),
        ({"max_gradient_norm": 0.0}, "max_gradient_norm must be positive"),
        ({"max_skipped_in_a_row": 0}, "max_skipped_in_a_row must be positive"),
        ({"no_weight_decay": ["norms"]}, r"no_weight_decay\[0\]: 'norms' is not one of"),
        ({"groups": [{"patterns": []}]}, r"groups\[0\]: .*at least one address pattern"),
        ({"groups": [{"patterns": ["head"], "rate": 2}]}, r"groups\[0\].rate: unknown key"),
        ({"schedule": {"kind": "linear"}}, "schedule.kind: 'linear' is not one of"),
        ({"schedule": {"kind": "power"}}, "schedule.power: missing"),
        (
            {"schedule": {"power": {"batch_size": 1, "tokens_per_step": 1}}},
            "schedule.power: kind 'cosine' has none, only power",
        ),
        ({"schedule": {"warm_up_steps": -1}}, "warm_up_steps is negative: -1"),
        ({"schedule": {"end_factor": 2.0}}, "end_factor must be in"),
        ({"schedule": {"kind": "constant", "decay_steps": 5}}, "'constant' has none, only cosine"),
        ({"schedule": {"kind": "constant", "end_factor": 0.5}}, "'constant' has none, only cosine"),
        ({"muon": {"momentum": 1.0}}, "muon momentum must be in"),
    ],
)
def test_bad_input_is_refused_in_one_line(data, message):
    with pytest.raises(InputError, match=message) as error:
        from_mapping(OptimizerConfig, data)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("fields", "wanted"),
    [
        ({}, CosineSchedule()),
        ({"kind": "cosine", "warm_up_steps": 5, "power": None}, CosineSchedule(warm_up_steps=5)),
        ({"kind": "constant", "decay_steps": None, "end_factor": 0.1}, ConstantSchedule()),
        ({"kind": "constant", "end_factor": 0.7, "power": None}, ConstantSchedule()),
        ({"kind": "power", "power": PowerConfig(8, 16)}, PowerSchedule(power=PowerConfig(8, 16))),
    ],
)
def test_the_one_record_of_before_becomes_the_schedule_of_its_kind(fields, wanted):
    assert ScheduleConfig(**fields) == wanted
    assert from_mapping(OptimizerConfig, {"schedule": fields}).schedule == wanted
