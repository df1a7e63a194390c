"""Timeline of a run: what each start spent its wall-clock time on, in `timeline.jsonl`.

Unlike `metrics.jsonl`, it keeps what a killed start did beyond its last checkpoint: goodput is the
share of the time that was not spent in vain. A record covers the time since the one before it:

    {"time": ..., "event": "start", "step": 0}          since the epoch; the process began
    {"time": ..., "event": "first_step", "step": 1}     restored or initialised, compiled, one step
    {"time": ..., "event": "steps", "step": 20, "data_wait": 0.1, "checkpoint": 0.0, ...}
    {"time": ..., "event": "stop", "step": 40, "reason": "SIGTERM"}

The seconds of activities are part of the time that a record covers; the rest is steps.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from etils import epath

from modbrick.hardware import process_start
from modbrick.parallel.processes import is_first
from modbrick.paths import as_path
from modbrick.training.observe.line_log import LineLog, Record, is_number, read_log
from modbrick.training.observe.observer import ACTIVITIES, Activity, Observer
from modbrick.training.step import StepMetrics

TIMELINE_FILE = "timeline.jsonl"


class Timeline(Observer):
    """Appends to the timeline of a run.

    Args:
      directory: of the run.
      step: that this start begins at.
    """

    def __init__(self, directory: epath.PathLike, step: int):
        # Every process measures, the first one writes.
        self._log = LineLog(as_path(directory) / TIMELINE_FILE) if is_first() else None
        # One clock for a start: the wall clock may be set while it runs.
        self._offset = time.time() - time.monotonic()
        self._started = False
        self._clear()
        self._append("start", step, at=process_start())

    def _clear(self) -> None:
        self._seconds: dict[Activity, float] = dict.fromkeys(ACTIVITIES, 0.0)

    def spent(self, activity: Activity, seconds: float) -> None:
        """Adds seconds that were spent on something else than steps."""
        self._seconds[activity] += seconds

    def step_started(self, step: int, metrics: StepMetrics) -> None:
        """Records how long it took until `step` was done, if that is this start's first."""
        del metrics
        if not self._started:
            self._started = True
            self._append("first_step", step, **self._seconds)

    def recorded(self, record: Mapping[str, Any]) -> None:
        """Records the time since the last record."""
        self._append("steps", record["step"], **self._seconds)

    def saved(self, step: int) -> None:
        """Records the time since the last record."""
        self._append("steps", step, **self._seconds)

    def stopped(self, step: int, reason: str) -> None:
        """Records that this start ended in good order: `finished`, or the name of a signal."""
        self._append("stop", step, reason=reason, **self._seconds)

    def _append(self, event: str, step: int, at: float | None = None, **more: Any) -> None:
        now = self._offset + time.monotonic() if at is None else at
        if self._log is not None:
            self._log.append({"time": now, "event": event, "step": step, **more})
        self._clear()

    def close(self) -> None:
        """Closes the file."""
        if self._log is not None:
            self._log.close()


def read_timeline(directory: epath.PathLike) -> list[dict[str, Any]]:
    """Returns the records of a run's timeline, in order; damaged ones are left out, and said."""
    return read_log(as_path(directory) / TIMELINE_FILE, whole=_is_whole)


def _is_whole(record: Record) -> bool:
    seconds = (record.get(activity, 0.0) for activity in ACTIVITIES)
    return (
        all(is_number(value) for value in (record.get("time"), record.get("step"), *seconds))
        and isinstance(record.get("event"), str)
        and (record["event"] != "stop" or isinstance(record.get("reason"), str))
    )
