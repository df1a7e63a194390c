"""A progress bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Mapping
from typing import Any, Literal

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

from modbrick.training.observe.observer import FINISHED, Observer
from modbrick.training.observe.router_alarm import RouterAlarm
from modbrick.training.step import StepMetrics
from modbrick.training.tasks.task import Evaluation

SECONDS_BETWEEN_LINES = 10.0


class TrainingProgress(Observer):
    """Shows where a run stands: step, loss, tokens per second, utilisation, time left.

    Args:
      steps: of the whole run.
      start_step: where this start begins.
      mode: `auto` or `none`, see `LoggingConfig`.
      loss_name: of the loss to show, among the parts of a record.
      alarm: about routers.
    """

    def __init__(
        self,
        steps: int,
        start_step: int,
        mode: Literal["auto", "none"] = "auto",
        loss_name: str = "next_token",
        alarm: RouterAlarm | None = None,
    ):
        self._steps, self._mode, self._loss_name = steps, mode, loss_name
        self._alarm = RouterAlarm() if alarm is None else alarm
        self._last_line = 0.0
        self._console = Console(stderr=True)
        self._bar: Progress | None = None
        if mode == "auto" and self._console.is_terminal:
            self._bar = Progress(
                TextColumn("training"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[figures]}"),
                TimeRemainingColumn(),
                console=self._console,
            )
            self._task = self._bar.add_task("", total=steps, completed=start_step, figures="")

    def __enter__(self) -> TrainingProgress:
        if self._bar is not None:
            self._bar.start()
        return self

    def close(self) -> None:
        """Leaves the bar as it is."""
        if self._bar is not None:
            with contextlib.suppress(OSError):  # of a terminal that is closed
                self._bar.stop()

    def step_started(self, step: int, metrics: StepMetrics) -> None:
        """Moves to `step`."""
        del metrics
        if self._bar is not None:
            self._bar.update(self._task, completed=step)

    def recorded(self, record: Mapping[str, Any]) -> None:
        """Shows the figures of a metrics record."""
        figures = (
            f"loss {record[self._loss_name]:.3f}  {record['tokens_per_second']:,.0f} tokens/s  "
            f"utilisation {record['utilisation']:.0%}"
        )
        if skipped := record["skipped_updates"]:
            figures += f"  skipped {skipped}"
        if dropped := record["dropped_choices"]:
            figures += f"  dropped {dropped:,.0f}"
        alarm = self._alarm.hear(record)
        if collapsed := len(self._alarm.collapsed):
            figures += f"  collapsed routers {collapsed}"
        if self._bar is not None:
            self._bar.update(self._task, figures=figures)
        elif self._mode == "auto":
            now, last = time.monotonic(), record["step"] >= self._steps
            if last or now - self._last_line >= SECONDS_BETWEEN_LINES:
                self._last_line = now
                self.message(f"step {record['step']}/{self._steps}  {figures}")
        if alarm is not None:
            self.message(f"step {record['step']}  {alarm}")

    def evaluated(self, step: int, evaluation: Evaluation, parameters: Any) -> None:
        """Shows a result on held-out data."""
        del parameters
        self.message(f"step {step}  held out: {evaluation.text}")

    def stopped(self, step: int, reason: str) -> None:
        """Says where a run that was stopped goes on."""
        if reason != FINISHED:
            self.message(f"stopped by {reason}: saved step {step} of {self._steps}")

    def message(self, text: str) -> None:
        """Prints a line without disturbing the bar."""
        if self._mode == "none":
            return
        try:
            if self._bar is not None:
                self._bar.console.print(text, highlight=False, markup=False)
            else:
                print(text, file=sys.stderr, flush=True)
        except OSError:  # the terminal was closed: nobody reads, and training goes on
            self._mode = "none"
