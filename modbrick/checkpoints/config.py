"""When checkpoints are written and which are kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from modbrick.errors import InputError


@dataclass(frozen=True)
class CheckpointConfig:
    """When checkpoints are written and which are kept: the union of the three policies below.

    The newest checkpoint is kept whatever the policies say.

    Attributes:
      every: steps between checkpoints; 0: only when a run ends or is asked to stop.
      keep_latest: how many of the newest to keep.
      keep_best: how many of the best by `best_metric` to keep; 0: none for that reason.
      best_metric: name of the metric, among those handed over with a checkpoint.
      best_mode: whether the smallest (`min`) or the largest (`max`) value is the best.
      keep_every: keep every checkpoint whose step is a multiple of this; 0: none for that reason.
      asynchronous: write in the background while training goes on.
    """

    every: int = 1000
    keep_latest: int = 2
    keep_best: int = 0
    best_metric: str = "loss"
    best_mode: Literal["min", "max"] = "min"
    keep_every: int = 0
    asynchronous: bool = True

    def __post_init__(self) -> None:
        for name, least in (("every", 0), ("keep_latest", 1), ("keep_best", 0), ("keep_every", 0)):
            if getattr(self, name) < least:
                raise InputError(
                    f"checkpoint {name} must be at least {least}, got {getattr(self, name)}"
                )
        if self.best_mode not in ("min", "max"):
            raise InputError(f"checkpoint best_mode must be min or max, got {self.best_mode!r}")
        if self.keep_best and not self.best_metric:
            raise InputError("checkpoint keep_best needs the name of a metric in best_metric")

    def due(self, step: int) -> bool:
        """Returns whether a checkpoint is due after `step` steps."""
        return self.every > 0 and step > 0 and step % self.every == 0
