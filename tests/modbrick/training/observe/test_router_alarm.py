"""The alarm about routers: what sets it off, and that it is heard once."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from modbrick.objective import ObjectiveConfig
from modbrick.optimizer import ConstantSchedule
from modbrick.training.observe.progress import TrainingProgress
from modbrick.training.observe.router_alarm import QUIET_STEPS, RouterAlarm
from modbrick.training.observe.router_health import RouterHealth
from tests.configs import tiny
from tests.modbrick.training.observe.test_progress import record
from tests.modbrick.training.observe.test_router_health import statistics

EVEN = [500.0] * 8
DEAD = [500.0] * 7 + [0.0]
UNEVEN = [30_000.0] + [20.0] * 7
FEW = [4.0, 3.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]  # too few to tell
RARE = [500.0] * 7 + [1.0]  # rarely chosen is not dead


def records(step: int, *layers: list[float]) -> dict[str, Any]:
    health = RouterHealth.from_statistics(statistics(list(layers))).to_mapping()
    return {**record(step), "routers": {"segments.0.feed_forward": health}}


@pytest.mark.parametrize(
    ("layer", "collapsed"), [(EVEN, 0), (DEAD, 1), (UNEVEN, 1), (FEW, 0), (RARE, 0), ([900.0], 0)]
)
def test_a_layer_collapses_by_dead_experts_or_by_a_low_entropy(
    layer: list[float], collapsed: int
) -> None:
    health = RouterHealth.from_statistics(statistics([layer]))
    np.testing.assert_array_equal(health.collapsed, [collapsed])
    assert health.scalars()["collapsed"] == collapsed
    assert (RouterAlarm(0).hear(records(1, layer)) is not None) == bool(collapsed)


def test_it_is_quiet_at_first_and_heard_when_something_changes() -> None:
    alarm = RouterAlarm(5)
    heard = [
        alarm.hear(records(step, *layers))
        for step, layers in enumerate(
            [[DEAD, EVEN]] * 6 + [[DEAD, EVEN], [DEAD, DEAD], [DEAD, UNEVEN], [EVEN, EVEN]] * 2
        )
    ]
    assert heard[:6] == [None] * 6
    assert heard[6] == (
        "routers collapsed: segments.0.feed_forward layer 0 (1 of 8 experts dead, load entropy "
        "0.94); raise objective.load_balancing, or lower optimizer.learning_rate"
    )
    assert heard[7] is not None
    assert "layer 1 (1 of 8" in heard[7]
    assert heard[8] is None, "the same two layers"
    assert heard[9] == "routers: every layer uses all its experts again"
    assert alarm.hear(records(99, *[DEAD] * 5)).count("layer") == 3  # type: ignore[union-attr]
    assert RouterAlarm(0).hear(record(9)) is None, "a model without routers"


def test_a_run_that_is_to_use_few_experts_has_none_and_a_warm_up_is_waited_for() -> None:
    config = tiny.get_config()
    concentrating = dataclasses.replace(config, objective=ObjectiveConfig(concentration=0.1))
    assert RouterAlarm.of_run(concentrating).hear(records(10**6, DEAD)) is None
    assert RouterAlarm.of_run(config).hear(records(QUIET_STEPS, DEAD)) is None
    assert RouterAlarm.of_run(config).hear(records(QUIET_STEPS + 1, DEAD)) is not None
    schedule = ConstantSchedule(warm_up_steps=300)
    optimizer = dataclasses.replace(config.optimizer, schedule=schedule)
    slow = RouterAlarm.of_run(dataclasses.replace(config, optimizer=optimizer))
    assert slow.hear(records(300, DEAD)) is None
    assert slow.hear(records(301, DEAD)) is not None


def test_the_progress_line_has_it(capsys: pytest.CaptureFixture[str]) -> None:
    with TrainingProgress(90, 0, alarm=RouterAlarm(0)) as progress:
        for step in (30, 60, 90):
            progress.recorded(records(step, DEAD, EVEN))
    lines = capsys.readouterr().err.splitlines()
    assert sum("routers collapsed: " in line for line in lines) == 1
    assert lines[0].endswith("collapsed routers 1")
    assert lines[1].startswith("step 30  routers collapsed: segments.0.feed_forward layer 0 (1 of")
