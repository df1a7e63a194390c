"""Timeline of a run, as it is recorded."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from modbrick.analysis.goodput import goodput
from modbrick.hardware import process_start
from modbrick.training.observe import timeline
from modbrick.training.observe.observer import ACTIVITIES
from modbrick.training.observe.timeline import TIMELINE_FILE, Timeline, read_timeline
from tests.modbrick.training.observe.steps import step_metrics


class Clock:
    """Clocks that move only when they are set; the one on the wall may be set."""

    def __init__(self) -> None:
        self.passed, self.wall = 50.0, 1.7e9

    def monotonic(self) -> float:
        return self.passed

    def time(self) -> float:
        return self.wall

    def wait(self, seconds: float) -> None:
        self.passed += seconds
        self.wall += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(timeline, "time", clock)
    monkeypatch.setattr(timeline, "process_start", lambda: clock.wall - 30.0)
    return clock


def test_a_start_from_its_beginning_to_its_end(tmp_path: Path, clock: Clock) -> None:
    origin = clock.wall
    with Timeline(tmp_path, 7) as kept:
        clock.wait(20)
        kept.spent("data_wait", 0.5)
        kept.step_started(8, step_metrics())
        for step in (9, 10):
            clock.wait(2)
            kept.spent("data_wait", 0.25)
            kept.step_started(step, step_metrics())
        clock.wait(3)
        kept.spent("checkpoint", 3.0)
        clock.wall -= 3600  # somebody sets the clock
        kept.saved(10)
        clock.wait(5)
        kept.spent("evaluation", 5.0)
        kept.stopped(10, "SIGTERM")
    none: dict[str, object] = dict.fromkeys(ACTIVITIES, 0.0)
    assert read_timeline(tmp_path) == [
        {"time": origin - 30, "event": "start", "step": 7},
        {**none, "time": origin + 20, "event": "first_step", "step": 8, "data_wait": 0.5},
        {**none, "time": origin + 27, "event": "steps", "step": 10, "data_wait": 0.5}
        | {"checkpoint": 3.0},
        {**none, "time": origin + 32, "event": "stop", "step": 10, "reason": "SIGTERM"}
        | {"evaluation": 5.0},
    ]


def test_later_starts_are_added_to_the_records_of_a_killed_one(
    tmp_path: Path, clock: Clock
) -> None:
    killed = Timeline(tmp_path, 0)
    killed.step_started(1, step_metrics())
    killed.recorded({"step": 9})
    clock.wait(100)
    with Timeline(tmp_path, 4) as kept:
        kept.step_started(5, step_metrics())
    killed.close()
    events = [(record["event"], record["step"]) for record in read_timeline(tmp_path)]
    assert events == [
        ("start", 0),
        ("first_step", 1),
        ("steps", 9),
        ("start", 4),
        ("first_step", 5),
    ]


def test_a_process_knows_when_it_began() -> None:
    assert process_start() <= time.time()
    assert process_start() == pytest.approx(process_start(), abs=0.1)


def test_damaged_records_are_left_out_of_the_account(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [
        '{"time": 10.0, "event": "start", "step": 0}',
        '{"time": "x", "event": "steps", "step": 1}',
        '{"event": "steps", "step": 1}',
        '{"time": 11.0, "step": 1}',
        '{"time": 11.0, "event": ["steps"], "step": 1}',
        '{"time": 11.0, "event": "steps"}',
        '{"time": 11.0, "event": "steps", "step": 1, "data_wait": "long"}',
        '{"time": 11.0, "event": "stop", "step": 1}',
        "null",
        '{"time": 12.0, "event": "steps", "step": 2, "data_wait": 0.5}',
    ]
    (tmp_path / TIMELINE_FILE).write_text("".join(f"{line}\n" for line in lines))
    assert [record["time"] for record in read_timeline(tmp_path)] == [10.0, 12.0]
    assert "8 damaged lines are left out, line 2 first" in capsys.readouterr().err
    assert goodput(read_timeline(tmp_path)).total == 2.0
