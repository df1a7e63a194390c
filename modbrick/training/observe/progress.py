"""A progress bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from typing import Any, Literal

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

from modbrick.training.evaluation import EvaluationResult

SECONDS_BETWEEN_LINES = 10.0


class TrainingProgress:
    """Shows where a run stands: step, loss, tokens per second, utilisation, time left.

    Args:
      steps: of the whole run.
      start_step: where this start begins.
      mode: `auto` or `none`, see `LoggingConfig`.
    """

    def __init__(self, steps: int, start_step: int, mode: Literal["auto", "none"] = "auto"):
        self._steps, self._mode = steps, mode
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

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def step(self, step: int) -> None:
        """Moves to `step`."""
        if self._bar is not None:
            self._bar.update(self._task, completed=step)

    def figures(self, record: dict[str, Any]) -> None:
        """Shows the figures of a metrics record."""
        figures = (
            f"loss {record['next_token']:.3f}  {record['tokens_per_second']:,.0f} tokens/s  "
            f"utilisation {record['utilisation']:.0%}"
        )
        if skipped := record["skipped_updates"]:
            figures += f"  skipped {skipped}"
        if dropped := record["dropped_choices"]:
            figures += f"  dropped {dropped:,.0f}"
        if self._bar is not None:
            self._bar.update(self._task, figures=figures)
        elif self._mode == "auto":
            now, last = time.monotonic(), record["step"] >= self._steps
            if last or now - self._last_line >= SECONDS_BETWEEN_LINES:
                self._last_line = now
                self.message(f"step {record['step']}/{self._steps}  {figures}")

    def evaluation(self, step: int, result: EvaluationResult) -> None:
        """Shows a result on held-out text."""
        total = result.total
        self.message(
            f"step {step}  held out: loss {total.loss:.3f}, perplexity {total.perplexity:.2f}, "
            f"{total.bits_per_byte:.3f} bits per byte"
        )

    def message(self, text: str) -> None:
        """Prints a line without disturbing the bar."""
        if self._mode == "none":
            return
        if self._bar is not None:
            self._bar.console.print(text, highlight=False, markup=False)
        else:
            print(text, file=sys.stderr, flush=True)
