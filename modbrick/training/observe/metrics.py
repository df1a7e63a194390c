"""Metrics of a run as files: JSON lines and TensorBoard events."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from etils import epath

from modbrick.parallel.processes import is_first
from modbrick.training.observe.line_log import LineLog, read_log
from modbrick.training.observe.observer import Observer
from modbrick.training.tasks.task import Evaluation

METRICS_FILE = "metrics.jsonl"


class MetricsWriter(Observer):
    """Appends records to `metrics.jsonl` and TensorBoard events in a run's directory.

    In a run of several processes the first one writes.

    Args:
      directory: of the run.
      start_step: step that the run continues from; records of later steps, left by a run that was
        killed, are dropped, since they are about to be written again.
      tensorboard: whether to write events too.
    """

    def __init__(self, directory: str, *, start_step: int = 0, tensorboard: bool = True):
        path = epath.Path(directory) / METRICS_FILE
        self._log = self._events = None
        if not is_first():
            return
        self._log = LineLog(path, keep=lambda record: record["step"] <= start_step)
        if tensorboard:
            import tensorboardX  # takes a second to import

            events = str(epath.Path(directory) / "tensorboard")
            self._events = tensorboardX.SummaryWriter(events, purge_step=start_step + 1)

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
            for name, value in _scalars(record).items():
                if name != "step":
                    self._events.add_scalar(name, value, record["step"])

    def close(self) -> None:
        """Flushes and closes the files."""
        if self._log is not None:
            self._log.close()
        if self._events is not None:
            self._events.close()


def read_metrics(directory: str) -> list[dict[str, Any]]:
    """Returns the records of a run, in order; a line cut off by a kill is left out."""
    return read_log(epath.Path(directory) / METRICS_FILE)


def _scalars(record: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    found: dict[str, float] = {}
    for key, value in record.items():
        if isinstance(value, Mapping):
            found |= _scalars(value, f"{prefix}{key}/")
        elif isinstance(value, list):
            found |= {
                f"{prefix}{key}/layer_{layer}": item
                for layer, item in enumerate(value)
                if isinstance(item, (int, float))
            }
        elif isinstance(value, (int, float)):
            found[prefix + key] = value
    return found
