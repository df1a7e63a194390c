"""Records of some steps: what they hold, what counts as time, and when training has diverged."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modbrick.training.observe.router_health import RouterHealth
from modbrick.training.observe.window import DivergedError, MetricsWindow
from modbrick.training.tasks.task import Work
from tests.modbrick.training.observe.steps import statistics, step_metrics


class Clock:
    """A clock that moves only when it is set."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("modbrick.training.observe.window.time", clock)
    return clock


def test_a_record_is_means_of_losses_and_health_of_summed_routers() -> None:
    window = MetricsWindow(1.0, max_skipped=3)
    found = [statistics(seed) for seed in range(3)]
    losses = [3.0, 1.0, 0.5]
    for loss, of_step in zip(losses, found, strict=True):
        window.add(step_metrics(loss, routers={"segments.0.attention": of_step}), Work(1, 1.0))
    record = window.record(3)
    assert record["step"] == 3
    assert record["loss"] == pytest.approx(np.mean(losses))
    assert record["next_token"] == pytest.approx(2 * np.mean(losses))
    assert record["switch"] == pytest.approx(-np.mean(losses))
    assert record["gradient_norm"] == 0.125  # of the last step
    assert record["learning_rate"] == 0.0625
    total = jax.tree.map(lambda *parts: sum(parts), *found)
    expected = RouterHealth.from_statistics(total).to_mapping()
    assert record["routers"] == {"segments.0.attention": expected}
    assert record["dropped_choices"] == pytest.approx(float(np.sum(total.dropped)))
    assert json.loads(json.dumps(record)) == record
    window.add(step_metrics(7.0), Work(1, 1.0))
    assert window.record(4)["loss"] == 7.0, "a record starts anew"


def test_rates_leave_out_the_first_step_and_what_is_no_training(clock: Clock) -> None:
    window = MetricsWindow(flops_per_second=100.0, max_skipped=3)
    clock.now += 1000  # compiles
    window.add(step_metrics(), Work(999, 1e9))
    for _ in range(2):
        clock.now += 2
        window.add(step_metrics(), Work(10, 40.0))
    with window.paused():
        clock.now += 500
    record = window.record(3)
    assert record["seconds_per_step"] == 2.0
    assert record["tokens_per_second"] == 5.0
    assert record["utilisation"] == pytest.approx(80 / 4 / 100)
    clock.now += 8
    window.add(step_metrics(), Work(16, 80.0))
    record = window.record(4)
    assert (record["seconds_per_step"], record["tokens_per_second"]) == (8.0, 2.0)


def test_a_record_of_the_first_step_alone_has_no_rate(clock: Clock) -> None:
    window = MetricsWindow(1.0, max_skipped=3)
    window.add(step_metrics(), Work(10, 1.0))
    clock.now += 1
    record = window.record(1)
    assert (record["seconds_per_step"], record["tokens_per_second"]) == (None, 0.0)


def test_devices_wait_for_data_only_while_nothing_runs(clock: Clock) -> None:
    class Running:
        def is_ready(self) -> bool:
            return False

    def batches() -> Iterator[int]:
        while True:
            clock.now += 3
            yield 7

    source, window = batches(), MetricsWindow(1.0, max_skipped=3)
    assert window.fetch(source) == (7, 3.0)
    window.add(step_metrics(), Work(10, 1.0))
    clock.now += 1
    assert window.record(1)["data_wait_seconds"] == 0.0, "before the first step is no window's"
    for step in (2, 3):
        assert window.fetch(source) == (7, 3.0)
        window.add(step_metrics(), Work(10, 1.0))
        assert window.fetch(source) == (7, 3.0)
        window.add(step_metrics(), Work(10, 1.0))
        assert window.record(step)["data_wait_seconds"] == 6.0
    window.add(dataclasses.replace(step_metrics(), loss=Running()), Work(10, 1.0))  # type: ignore[arg-type]
    assert window.fetch(source) == (7, 0.0)


def longest_streak(skips: list[bool]) -> int:
    longest = streak = 0
    for skipped in skips:
        streak = streak + 1 if skipped else 0
        longest = max(longest, streak)
    return longest


def diverges(steps: list[tuple[bool, bool]], limit: int) -> bool:
    window = MetricsWindow(1.0, max_skipped=limit)
    streak = 0
    try:
        for step, (skipped, recorded) in enumerate(steps, 1):
            streak = streak + 1 if skipped else 0
            window.add(step_metrics(in_a_row=streak), Work(1, 1.0))
            if recorded or step == len(steps):
                window.record(step)
    except DivergedError:
        return True
    return False


@settings(max_examples=40)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=10))
def test_too_many_skips_in_a_row_stop_training_wherever_records_lie(
    steps: list[tuple[bool, bool]],
) -> None:
    assert diverges(steps, 2) == (longest_streak([skipped for skipped, _ in steps]) >= 2)


def test_divergence_is_told_one_step_later_and_with_a_remedy() -> None:
    window = MetricsWindow(1.0, max_skipped=2)
    for streak in (1, 2):
        window.add(step_metrics(in_a_row=streak), Work(1, 1.0))
    with pytest.raises(DivergedError, match=r"2 updates in a row .*optimizer\.learning_rate"):
        window.add(step_metrics(), Work(1, 1.0))
