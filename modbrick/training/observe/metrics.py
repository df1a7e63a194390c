"""Metrics of a run as files: JSON lines and TensorBoard events."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from etils import epath

from modbrick.errors import InputError
from modbrick.parallel.processes import is_first, say
from modbrick.paths import as_path
from modbrick.training.observe.events import EventLog
from modbrick.training.observe.line_log import LineLog, read_log
from modbrick.training.observe.observer import Observer
from modbrick.training.tasks.task import Evaluation

METRICS_FILE = "metrics.jsonl"


class MetricsWriter(Observer):
    """Appends records to `metrics.jsonl` and TensorBoard events in a run's directory.

    In a run of several processes the first one writes. What cannot be written from the start is an
    `InputError`; later, it is said once, and training goes on.

    Args:
      directory: of the run.
      start_step: step that the run continues from; records of later steps, left by a run that was
        killed, are dropped, since they are about to be written again.
      tensorboard: whether to write events too.
      warn: is handed the line about what is lost.
    """

    def __init__(
        self,
        directory: epath.PathLike,
        *,
        start_step: int = 0,
        tensorboard: bool = True,
        warn: Callable[[str], None] = say,
    ):
        path = as_path(directory)
        self._log: LineLog | None = None
        self._events: EventLog | None = None
        if not is_first():
            return
        self._log = LineLog(
            path / METRICS_FILE, keep=lambda record: record.get("step", 0) <= start_step, warn=warn
        )
        if tensorboard:
            try:
                self._events = EventLog(path, start_step=start_step, warn=warn)
            except InputError:
                self._log.close()
                raise

    def recorded(self, record: Mapping[str, Any]) -> None:
        """Writes the metrics of some steps."""
        self.write(record)

    def evaluated(self, step: int, evaluation: Evaluation, parameters: Any) -> None:
        """Writes the result of an evaluation."""
        del parameters
        self.write({"step": step, "evaluation": evaluation.record})

    def write(self, record: Mapping[str, Any]) -> None:
        """Writes one record, whose `step` is its time axis; numbers may be nested."""
        if self._log is not None:
            self._log.append(dict(record))
        if self._events is not None:
            numbers = scalars({key: value for key, value in record.items() if key != "step"})
            self._events.write(record["step"], numbers)

    def close(self) -> None:
        """Flushes and closes the files."""
        if self._log is not None:
            self._log.close()
        if self._events is not None:
            self._events.close()


def read_metrics(directory: epath.PathLike) -> list[dict[str, Any]]:
    """Returns the records of a run, in order; a line cut off by a kill is left out."""
    return read_log(as_path(directory) / METRICS_FILE)


def scalars(record: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Returns the numbers of a nested record by path (`domains/code/loss`, `…/layer_0`)."""
    found: dict[str, float] = {}
    for key, value in record.items():
        if isinstance(value, Mapping):
            found |= scalars(value, f"{prefix}{key}/")
        elif isinstance(value, list):
            found |= {
                f"{prefix}{key}/layer_{layer}": item
                for layer, item in enumerate(value)
                if isinstance(item, (int, float))
            }
        elif isinstance(value, (int, float)):
            found[prefix + key] = value
    return found
