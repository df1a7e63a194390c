"""Goodput: every second of a run is accounted for once, and what was done in vain is found."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib import pyplot

from modbrick.analysis.goodput import PARTS, goodput
from modbrick.analysis.pictures import draw_goodput
from modbrick.errors import InputError

ORIGIN = 1.7e9

# Three starts: killed at step 50 after a checkpoint at 30; preempted in good order at 60; finished.
INTERRUPTED: list[dict[str, Any]] = [
    {"time": 0, "event": "start", "step": 0},
    {"time": 100, "event": "first_step", "step": 1, "data_wait": 5},
    # 300 s for 29 steps, of which 10 s of waiting and 20 s of saving
    {"time": 400, "event": "steps", "step": 30, "data_wait": 10, "checkpoint": 20},
    {"time": 600, "event": "steps", "step": 50, "evaluation": 40},
    # killed; 50 s until the next start
    {"time": 650, "event": "start", "step": 30},
    {"time": 710, "event": "first_step", "step": 31},
    {"time": 1000, "event": "steps", "step": 60, "checkpoint": 30},
    {"time": 1010, "event": "stop", "step": 60, "reason": "SIGTERM", "checkpoint": 10},
    {"time": 1110, "event": "start", "step": 60},
    {"time": 1180, "event": "first_step", "step": 61},
    {"time": 1580, "event": "steps", "step": 100},
    {"time": 1580, "event": "stop", "step": 100, "reason": "finished"},
]


def at(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{**record, "time": ORIGIN + record["time"]} for record in records]


def test_an_interrupted_run_is_accounted_for() -> None:
    report = goodput(at(INTERRUPTED))
    assert report.seconds == pytest.approx(
        {
            "steps": 270 + 260 + 400,
            "start": 100,
            "data_wait": 10,
            "checkpoint": 20 + 30 + 10,
            "evaluation": 0,  # that one was lost
            "lost": 200,
            "down": 50 + 100,
            "restart": 60 + 70,
        }
    )
    assert report.total == pytest.approx(1580)
    assert report.share == pytest.approx(930 / 1580)
    assert (report.steps, report.lost_steps, report.interruptions) == (100, 20, 2)
    assert report.seconds_per_interruption == pytest.approx((200 + 150 + 130) / 2)
    assert [start.end for start in report.starts] == [None, "SIGTERM", "finished"]
    assert json.loads(json.dumps(report.to_mapping()))["goodput"] == report.share


def test_a_run_of_one_start_loses_nothing() -> None:
    report = goodput(
        at([*INTERRUPTED[:4], {"time": 600, "event": "stop", "step": 50, "reason": "x"}])
    )
    assert report.seconds["steps"] == pytest.approx(270 + 160)
    assert sum(report.seconds[part] for part in ("lost", "down", "restart")) == 0
    assert report.seconds_per_interruption is None


def test_a_record_across_the_step_continued_from_is_divided() -> None:
    records = [
        {"time": 0, "event": "start", "step": 0},
        {"time": 10, "event": "first_step", "step": 1},
        {"time": 110, "event": "steps", "step": 21, "data_wait": 20},
        {"time": 110, "event": "start", "step": 11},
    ]
    report = goodput(at(records))
    assert report.seconds["lost"] == pytest.approx(50)
    assert report.seconds["data_wait"] == pytest.approx(10)
    assert report.seconds["steps"] == pytest.approx(40)
    assert report.lost_steps == 10


def test_an_older_checkpoint_makes_two_starts_vain() -> None:
    """The third start finds the second's checkpoints damaged and goes back before both."""
    records = [
        {"time": 0, "event": "start", "step": 0},
        {"time": 1, "event": "first_step", "step": 1},
        {"time": 10, "event": "steps", "step": 10},
        {"time": 20, "event": "steps", "step": 20},
        {"time": 20, "event": "start", "step": 20},
        {"time": 21, "event": "first_step", "step": 21},
        {"time": 30, "event": "steps", "step": 30},
        {"time": 30, "event": "start", "step": 10},
    ]
    report = goodput(at(records))
    assert report.seconds["lost"] == pytest.approx(10 + 9)
    assert report.lost_steps == 10 + 10


def test_looking_at_a_finished_run_costs_nothing() -> None:
    idle = [
        {"time": 9000, "event": "start", "step": 100},
        {"time": 9005, "event": "stop", "step": 100, "reason": "finished"},
    ]
    assert goodput(at(INTERRUPTED + idle)) == goodput(at(INTERRUPTED))
    longer = [
        {"time": 9000, "event": "start", "step": 100},
        {"time": 9005, "event": "first_step", "step": 101},
    ]
    assert goodput(at(INTERRUPTED + longer)).total == pytest.approx(1580 + 5), "nobody waited"


@pytest.mark.parametrize("records", [[], INTERRUPTED[1:4]])
def test_a_run_without_timeline_is_refused(records: list[dict[str, Any]]) -> None:
    with pytest.raises(InputError, match=r"runs/7 has no timeline"):
        goodput(records, "runs/7")


@st.composite
def timelines(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Runs with any number of starts, some of which go back, and clocks that may disagree."""
    seconds = st.floats(0, 1000)
    now, reached, records = ORIGIN, 0, []
    for _ in range(draw(st.integers(1, 5))):
        now += draw(st.floats(-5, 1000))
        step = draw(st.integers(0, reached))
        records.append({"time": now, "event": "start", "step": step})
        for number in range(draw(st.integers(0, 4))):
            spent = {name: draw(seconds) for name in ("data_wait", "checkpoint", "evaluation")}
            now += draw(st.floats(0, 1000)) + sum(spent.values())
            step += 1 if number == 0 else draw(st.integers(0, 9))
            event = "steps" if number else "first_step"
            records.append({"time": now, "event": event, "step": step, **spent})
        reached = step
    return records


@given(timelines())
def test_parts_are_the_whole_and_none_is_negative(records: list[dict[str, Any]]) -> None:
    report = goodput(records)
    assert set(report.seconds) == set(PARTS)
    assert min(report.seconds.values()) >= 0
    assert 0 <= report.share <= 1
    gaps = sum(
        max(0.0, after["time"] - before["time"]) for before, after in itertools.pairwise(records)
    )
    assert report.total == pytest.approx(gaps, abs=1e-3)
    done = sum(max(0, start.last_step - start.first_step) for start in report.starts)
    assert report.steps + report.lost_steps == done


def test_it_is_drawn(tmp_path: Path) -> None:
    drawn = []
    for number, records in enumerate((INTERRUPTED, INTERRUPTED[:4])):
        path = tmp_path / f"{number}.png"
        draw_goodput(goodput(at(records)), str(path))
        drawn.append(pyplot.imread(path))
    assert pyplot.get_fignums() == []
    assert drawn[0].shape == drawn[1].shape
    assert (drawn[0] != drawn[1]).any()
