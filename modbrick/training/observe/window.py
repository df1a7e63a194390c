"""Metrics of some steps as one record: means of losses, totals of routers, rates."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from modbrick.errors import InputError
from modbrick.training.observe.router_health import RouterHealth
from modbrick.training.step import StepMetrics
from modbrick.training.tasks.task import Work


class DivergedError(InputError):
    """Training does not learn any more: its gradients stay non-finite."""


class MetricsWindow:
    """Gathers the metrics of some steps into one record, and their rates.

    Args:
      flops_per_second: what the machine can do; utilisation is useful operations over this.
      max_skipped: training stops when so many updates in a row were skipped.
    """

    def __init__(self, flops_per_second: float, max_skipped: int):
        self._peak, self._max_skipped = flops_per_second, max_skipped
        self._compiled = False
        self._clear()

    def _clear(self) -> None:
        self._steps: list[StepMetrics] = []
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
        last = self._steps[-1].loss if self._steps else None
        running = last is not None and not last.is_ready()  # type: ignore[attr-defined]
        seconds = 0.0 if running else time.perf_counter() - start
        if self._compiled:
            self._data_wait += seconds
        return batch, seconds

    def add(self, metrics: StepMetrics, work: Work) -> None:
        """Adds a step: its metrics, and the size of its batch.

        Waits for the step before it, so that the host is at most one step ahead of the devices.
        The very first step compiles: rates leave it out.

        Raises:
          DivergedError: too many updates in a row were skipped up to the step before.
        """
        self._check_last()
        self._steps.append(metrics)
        if not self._compiled:
            jax.block_until_ready(metrics.loss)
            self._compiled, self._start = True, time.perf_counter()
            return
        self._timed_steps += 1
        self._tokens += work.tokens
        self._flops += work.flops

    def record(self, step: int) -> dict[str, Any]:
        """Returns the record of the steps since the last one, up to `step`; starts anew."""
        self._check_last()
        steps = jax.device_get(self._steps)
        seconds = time.perf_counter() - self._start
        last = steps[-1]
        statistics = jax.tree.map(lambda *s: sum(s), *(m.router_statistics for m in steps))
        record = {
            "step": step,
            "loss": _mean([m.loss for m in steps]),
            **{name: _mean([m.parts[name] for m in steps]) for name in last.parts},
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
        if not self._steps:
            return
        skipped = int(self._steps[-1].optimizer.skipped_in_a_row)
        if skipped >= self._max_skipped:
            raise DivergedError(
                f"{skipped} updates in a row had non-finite gradients and were skipped; lower "
                "optimizer.learning_rate, or continue from an earlier checkpoint"
            )

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Stops the clock for what is no training; waits for the steps before it first."""
        if self._steps:
            jax.block_until_ready(self._steps[-1].loss)
        start = time.perf_counter()
        yield
        self._start += time.perf_counter() - start


def _mean(values: list[Any]) -> float:
    return float(np.mean([float(v) for v in values]))
