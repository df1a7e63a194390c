"""Goodput: which share of the wall time of a run went into steps that were kept.

A run is started one or more times; `training/timeline.py` says what each start spent its time on.
Every second between the first start and the last record belongs to exactly one part.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

from modbrick.errors import InputError
from modbrick.training.observe.observer import ACTIVITIES, FINISHED

PARTS = {
    "steps": "steps that were kept",
    "start": "first start: imports, data, new state, compiling, first step",
    "data_wait": "devices waiting for data",
    "checkpoint": "saving, as far as steps wait for it",
    "evaluation": "evaluation on held-out text",
    "lost": "work beyond the checkpoint that was continued from, done again",
    "down": "between the end of a start, or its last record, and the next start",
    "restart": "later starts until their first step is done",
}
INTERRUPTION = ("lost", "down", "restart")
"""The parts that interruptions cost."""


@dataclasses.dataclass(frozen=True)
class Start:
    """One start of a run.

    Attributes:
      begin: seconds since the epoch.
      first_step, last_step: steps done when it began, and at its last record.
      end: why it ended: `finished`, the name of a signal, or None: it was killed.
      records: of the timeline, that of its beginning first.
    """

    begin: float
    first_step: int
    last_step: int
    end: str | None
    records: tuple[dict[str, Any], ...]

    @property
    def seconds(self) -> float:
        """From its beginning to its last record."""
        return max(0.0, self.records[-1]["time"] - self.begin)


@dataclasses.dataclass(frozen=True)
class Goodput:
    """Wall time of a run, by what it was spent on.

    Attributes:
      seconds: by part, see `PARTS`; they sum up to `total`.
      starts: those that did something, in order.
      steps: kept.
      lost_steps: recorded, and then done again.
    """

    seconds: dict[str, float]
    starts: tuple[Start, ...]
    steps: int
    lost_steps: int

    @property
    def total(self) -> float:
        """Wall time in seconds."""
        return sum(self.seconds.values())

    @property
    def share(self) -> float:
        """Goodput: the share of the wall time in steps that were kept."""
        return self.seconds["steps"] / self.total if self.total else 0.0

    @property
    def interruptions(self) -> int:
        """Starts that others followed."""
        return len(self.starts) - 1

    @property
    def seconds_per_interruption(self) -> float | None:
        """Mean cost of an interruption: work lost, time down, starting again."""
        cost = sum(self.seconds[part] for part in INTERRUPTION)
        return cost / self.interruptions if self.interruptions else None

    def to_mapping(self) -> dict[str, Any]:
        """Returns everything as JSON-able data."""
        return {
            "goodput": self.share,
            "wall_seconds": self.total,
            "seconds": self.seconds,
            "shares": {k: v / self.total if self.total else 0.0 for k, v in self.seconds.items()},
            "steps": self.steps,
            "lost_steps": self.lost_steps,
            "interruptions": self.interruptions,
            "seconds_per_interruption": self.seconds_per_interruption,
            "starts": [
                {
                    "time": s.begin,
                    "seconds": s.seconds,
                    "first_step": s.first_step,
                    "last_step": s.last_step,
                    "end": s.end,
                }
                for s in self.starts
            ],
        }


def goodput(records: Sequence[dict[str, Any]], name: str = "the run") -> Goodput:
    """Accounts for the wall time of a run.

    A record that lies on both sides of the step that was continued from is divided by steps. A
    start that began after the run had finished, and did no step, is left out; so is the time before
    a run that had finished was continued (with more steps).

    Args:
      records: of its timeline, see `read_timeline`.
      name: of the run, for the message.

    Raises:
      InputError: no start is recorded.
    """
    starts = _starts(records)
    if not starts:
        raise InputError(f"{name} has no timeline: nothing was trained there, or with older code")
    seconds = dict.fromkeys(PARTS, 0.0)
    lost_steps = 0
    for number, start in enumerate(starts):
        # What lies beyond the step that any later start went on from was not kept.
        kept = min((later.first_step for later in starts[number + 1 :]), default=start.last_step)
        lost_steps += max(0, start.last_step - max(kept, start.first_step))
        for part, spent in _account(start, kept, "restart" if number else "start").items():
            seconds[part] += spent
    for start, following in itertools.pairwise(starts):
        if start.end != FINISHED:  # machines may differ in their clocks
            seconds["down"] += max(0.0, following.begin - start.begin - start.seconds)
    return Goodput(seconds, starts, starts[-1].last_step - starts[0].first_step, lost_steps)


def _starts(records: Sequence[dict[str, Any]]) -> tuple[Start, ...]:
    groups: list[list[dict[str, Any]]] = []
    for record in records:
        if record["event"] == "start":
            groups.append([])
        if groups:
            groups[-1].append(record)
    starts: list[Start] = []
    for group in groups:
        first, last = group[0], group[-1]
        end = last["reason"] if last["event"] == "stop" else None
        start = Start(first["time"], first["step"], last["step"], end, tuple(group))
        idle = start.last_step == start.first_step
        if not (idle and starts and starts[-1].end == FINISHED):
            starts.append(start)
    return tuple(starts)


def _account(start: Start, kept: int, starting: str) -> dict[str, float]:
    """Returns the seconds of a start by part; steps beyond `kept` are lost."""
    seconds = dict.fromkeys(PARTS, 0.0)
    for before, record in itertools.pairwise(start.records):
        span = max(0.0, record["time"] - before["time"])
        done = record["step"] - before["step"]
        beyond = max(0, record["step"] - max(kept, before["step"]))
        lost = span * (beyond / done if done else float(record["step"] > kept))
        if record["event"] == "first_step":
            # Until then the devices had nothing to do: it belongs to starting, kept or not.
            seconds[starting] += span
            continue
        seconds["lost"] += lost
        named = {a: record.get(a, 0.0) for a in ACTIVITIES}
        # Rounding must not make steps negative.
        scale = (span - lost) / max(span, sum(named.values())) if span else 0.0
        for activity, spent in named.items():
            seconds[activity] += spent * scale
        seconds["steps"] += max(0.0, span - lost - scale * sum(named.values()))
    return seconds
