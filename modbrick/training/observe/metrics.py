"""Metrics of a run: gathered over some steps, written as JSON lines and TensorBoard events."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from etils import epath

from modbrick.checkpoints.directory import as_path
from modbrick.config import ModelConfig
from modbrick.errors import InputError
from modbrick.flops import training_flops
from modbrick.parallel.processes import is_first, say
from modbrick.training.observe.events import EventLog
from modbrick.training.observe.line_log import LineLog, read_log
from modbrick.training.observe.router_health import RouterHealth
from modbrick.training.step import StepReport

METRICS_FILE = "metrics.jsonl"


class DivergedError(InputError):
    """Training does not learn any more: its gradients stay non-finite."""


class MetricsWindow:
    """Gathers the reports of some steps into one record: means of losses, totals of routers.

    Args:
      flops_per_second: what the machine can do; utilisation is useful operations over this.
      max_skipped: training stops when so many updates in a row were skipped.
    """

    def __init__(self, flops_per_second: float, max_skipped: int):
        self._peak, self._max_skipped = flops_per_second, max_skipped
        self._compiled = False
        self._clear()

    def _clear(self) -> None:
        self._reports: list[StepReport] = []
        self._tokens = 0
        self._flops = 0.0
        self._timed_steps = 0
        self._data_wait = 0.0
        self._start = time.perf_counter()

    def fetch[B](self, batches: Iterator[B]) -> tuple[B, float]:
        """Returns the next batch, and the seconds for which the devices waited for it, at most.

        While the step before is still running, nobody waits; what the host takes then is none. If
        it has ended by the time the batch is there, all that the host took counts.
        """
        start = time.perf_counter()
        batch = next(batches)
        last = self._reports[-1].loss if self._reports else None
        running = last is not None and not last.is_ready()  # type: ignore[attr-defined]
        seconds = 0.0 if running else time.perf_counter() - start
        if self._compiled:
            self._data_wait += seconds
        return batch, seconds

    def add(self, report: StepReport, tokens: int, flops: float) -> None:
        """Adds a step: its report, the tokens it read, and the useful operations it took.

        Waits for the step before it, so that the host is at most one step ahead of the devices.
        The very first step compiles: rates leave it out.

        Raises:
          DivergedError: too many updates in a row were skipped up to the step before.
        """
        self._check_last()
        self._reports.append(report)
        if not self._compiled:
            jax.block_until_ready(report.loss)
            self._compiled, self._start = True, time.perf_counter()
            return
        self._timed_steps += 1
        self._tokens += tokens
        self._flops += flops

    def record(self, step: int) -> dict[str, Any]:
        """Returns the record of the steps since the last one, up to `step`; starts anew."""
        self._check_last()
        reports = jax.device_get(self._reports)
        seconds = time.perf_counter() - self._start
        last = reports[-1]
        statistics = jax.tree.map(lambda *s: sum(s), *(r.router_statistics for r in reports))
        record = {
            "step": step,
            "loss": _mean([r.loss for r in reports]),
            **{name: _mean([r.parts[name] for r in reports]) for name in last.parts},
            "gradient_norm": float(last.optimizer.gradient_norm),
            "learning_rate": float(last.optimizer.learning_rate),
            "skipped_updates": int(last.optimizer.skipped_total),
            "skipped_in_a_row": int(last.optimizer.skipped_in_a_row),
            "tokens_per_second": self._tokens / seconds,
            "utilisation": self._flops / seconds / self._peak,
            "seconds_per_step": seconds / self._timed_steps if self._timed_steps else None,
            "data_wait_seconds": self._data_wait,
            "dropped_choices": float(sum(np.sum(s.dropped) for s in statistics.values())),
            "routers": {
                name: RouterHealth.from_statistics(s).to_mapping() for name, s in statistics.items()
            },
        }
        self._clear()
        return record

    def _check_last(self) -> None:
        if not self._reports:
            return
        skipped = int(self._reports[-1].optimizer.skipped_in_a_row)
        if skipped >= self._max_skipped:
            raise DivergedError(
                f"{skipped} updates in a row had non-finite gradients and were skipped; lower "
                "optimizer.learning_rate, or continue from an earlier checkpoint"
            )

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Stops the clock for what is no training; waits for the steps before it first."""
        if self._reports:
            jax.block_until_ready(self._reports[-1].loss)
        start = time.perf_counter()
        yield
        self._start += time.perf_counter() - start


def useful_flops(config: ModelConfig, batch: Mapping[str, np.ndarray]) -> float:
    """Returns the useful operations of training on a packed batch; padding counts as none."""
    real = batch["segment_ids"] != 0
    tokens = int(real.sum())
    keys_per_token = (batch["positions"] + 1)[real].mean() if tokens else 0.0
    return tokens * training_flops(config, float(keys_per_token))


class MetricsWriter:
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

    def write(self, record: dict[str, Any]) -> None:
        """Writes one record, whose `step` is its time axis; numbers may be nested."""
        if self._log is not None:
            self._log.append(record)
        if self._events is not None:
            numbers = scalars({key: value for key, value in record.items() if key != "step"})
            self._events.write(record["step"], numbers)

    def close(self) -> None:
        """Flushes and closes the files."""
        if self._log is not None:
            self._log.close()
        if self._events is not None:
            self._events.close()

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_metrics(directory: epath.PathLike) -> list[dict[str, Any]]:
    """Returns the records of a run, in order; a line cut off by a kill is left out."""
    return read_log(as_path(directory) / METRICS_FILE)


def _mean(values: list[Any]) -> float:
    return float(np.mean([float(v) for v in values]))


def scalars(record: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Returns the numbers of a nested record by path (`domains/code/loss`, `…/layer_0`)."""
    found: dict[str, float] = {}
    for key, value in record.items():
        if isinstance(value, dict):
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
