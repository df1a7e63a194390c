"""Weights & Biases: the metrics of a run on its page there, or in files for later (offline)."""

from __future__ import annotations

import hashlib
import importlib
import os
from collections.abc import Callable, Mapping
from typing import Any

from etils import epath

from modbrick.checkpoints.workdir.directory import is_local
from modbrick.errors import InputError
from modbrick.parallel.processes import is_first, say
from modbrick.paths import as_path
from modbrick.training.observe.metrics import scalars
from modbrick.training.observe.observer import FINISHED, Observer
from modbrick.training.observe.outage import Outage
from modbrick.training.tasks.task import Evaluation


class WeightsAndBiases(Observer):
    """Logs what `metrics.jsonl` gets; what fails there is said once, and training goes on.

    The library reads its own settings from the environment: `WANDB_MODE=offline` keeps everything
    in `WORKDIR/wandb`, to be sent by `wandb sync`. A start that continues a run continues its page.
    In a run of several processes the first one logs.

    Args:
      project: that the run belongs to.
      directory: of the run.
      config: of the run, as plain data.
      warn: is handed the line about what is lost.

    Raises:
      InputError: the library is not installed.
    """

    def __init__(
        self,
        project: str,
        directory: epath.PathLike,
        config: Mapping[str, Any],
        *,
        warn: Callable[[str], None] = say,
    ):
        self._run: Any = None
        self._status = 1
        self._outage = Outage("Weights & Biases", "without it", warn)
        if not is_first():
            return
        try:
            wandb = importlib.import_module("wandb")
        except ImportError as error:
            raise InputError(
                f'logging.wandb needs a library that is not there ({error}): pip install "modbrick'
                '[wandb]", or leave logging.wandb None'
            ) from None
        path = as_path(directory)
        with self._outage.survived():
            self._run = wandb.init(
                project=project,
                name=path.name,
                id=hashlib.sha256(os.fspath(path).encode("utf-8", "replace")).hexdigest()[:16],
                resume="allow",
                config=dict(config),
                dir=os.fspath(path) if is_local(path) else None,
            )

    def recorded(self, record: Mapping[str, Any]) -> None:
        """Logs the metrics of some steps."""
        self._log(record["step"], {key: x for key, x in record.items() if key != "step"})

    def evaluated(self, step: int, evaluation: Evaluation, parameters: Any) -> None:
        """Logs the result of an evaluation."""
        del parameters
        self._log(step, {"evaluation": evaluation.record})

    def stopped(self, step: int, reason: str) -> None:
        """Notes that the run ended in good order."""
        del step
        self._status = 0 if reason == FINISHED else 1

    def close(self) -> None:
        """Ends the run there, as finished or not."""
        if self._run is not None:
            with self._outage.survived():
                self._run.finish(exit_code=self._status)

    def _log(self, step: int, record: Mapping[str, Any]) -> None:
        if self._run is not None and not self._outage.began:
            with self._outage.survived():
                self._run.log(scalars(record), step=step)
