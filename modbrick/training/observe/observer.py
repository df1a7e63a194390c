"""Protocol of observers of a run: files, terminals, profiles and services alike.

A new observer is a subclass with the methods that it needs; it joins the others in `Observers`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self, get_args

from modbrick.training.step import StepMetrics
from modbrick.training.tasks.task import Evaluation

FINISHED = "finished"
Activity = Literal["data_wait", "checkpoint", "evaluation"]
ACTIVITIES: tuple[Activity, ...] = get_args(Activity)


class Observer:
    """Observer of a run, notified of what happens; this one ignores everything.

    In a run of several processes each has its own observers, all notified of the same. They are
    entered when training begins, and closed when it ends, by an error too.
    """

    def step_begins(self, step: int) -> None:
        """Comes before step `step` (from 1) is handed to the devices."""

    def step_started(self, step: int, metrics: StepMetrics) -> None:
        """Comes when a step has been handed to the devices, the first one when it has ended.

        Args:
          step: its number.
          metrics: of the step; reading a value waits for the devices.
        """

    def spent(self, activity: Activity, seconds: float) -> None:
        """Comes after time that was spent on something else than steps."""

    def recorded(self, record: Mapping[str, Any]) -> None:
        """Comes with the metrics of the steps since the last record, see `MetricsWindow.record`.

        The devices have ended the step `record["step"]`.
        """

    def evaluated(self, step: int, evaluation: Evaluation, parameters: Any) -> None:
        """Comes after an evaluation; its time counts as the evaluation's.

        Args:
          step: steps done.
          evaluation: the result.
          parameters: the model's, whole; the next step may consume them.
        """

    def saved(self, step: int) -> None:
        """Comes when a checkpoint is on its way to the disk, and training goes on."""

    def stopped(self, step: int, reason: str) -> None:
        """Comes when the run has ended in good order, its last state saved.

        Args:
          step: steps done.
          reason: `FINISHED`, or the name of a signal.
        """

    def close(self) -> None:
        """Ends and writes what is open."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Observers(Observer):
    """Several observers as one, notified in their order and closed in reverse."""

    def __init__(self, observers: Sequence[Observer]):
        """Puts observers together."""
        self._observers = tuple(observers)
        self._open = contextlib.ExitStack()

    def step_begins(self, step: int) -> None:
        """Tells each."""
        for observer in self._observers:
            observer.step_begins(step)

    def step_started(self, step: int, metrics: StepMetrics) -> None:
        """Tells each."""
        for observer in self._observers:
            observer.step_started(step, metrics)

    def spent(self, activity: Activity, seconds: float) -> None:
        """Tells each."""
        for observer in self._observers:
            observer.spent(activity, seconds)

    def recorded(self, record: Mapping[str, Any]) -> None:
        """Tells each."""
        for observer in self._observers:
            observer.recorded(record)

    def evaluated(self, step: int, evaluation: Evaluation, parameters: Any) -> None:
        """Tells each."""
        for observer in self._observers:
            observer.evaluated(step, evaluation, parameters)

    def saved(self, step: int) -> None:
        """Tells each."""
        for observer in self._observers:
            observer.saved(step)

    def stopped(self, step: int, reason: str) -> None:
        """Tells each."""
        for observer in self._observers:
            observer.stopped(step, reason)

    def close(self) -> None:
        """Closes each."""
        self._open.close()

    def __enter__(self) -> Self:
        for observer in self._observers:
            self._open.enter_context(observer)
        return self
