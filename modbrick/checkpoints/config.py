"""When checkpoints are written and which are kept."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from modbrick.errors import InputError
from modbrick.schema import nearest


@dataclass(frozen=True)
class CheckpointConfig:
    """When checkpoints are written and which are kept: the union of the three policies below.

    The newest checkpoint is kept whatever the policies say.

    Attributes:
      every: steps between checkpoints; 0: only when a run ends or is asked to stop.
      keep_latest: how many of the newest to keep.
      keep_best: how many of the best by `best_metric` to keep; 0: none for that reason.
      best_metric: name of the metric, among those of an evaluation: `loss`, or by path
        (`domains/code/loss`).
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

    def require_evaluations(self, every: int) -> None:
        """Checks that checkpoints are measured where the best are to be kept.

        Args:
          every: steps between evaluations; 0: only at the end.

        Raises:
          InputError: some would not be, and could not be among the best.
        """
        if self.keep_best and self.every and (every == 0 or self.every % every):
            evaluated = f"every {every}" if every else "only after the last (0)"
            raise InputError(
                f"checkpoint keep_best {self.keep_best} compares measured checkpoints; they are "
                f"written every {self.every} steps and measured {evaluated}: make checkpoint.every "
                "a multiple of evaluation.every"
            )

    def require_metric(self, names: Iterable[str]) -> None:
        """Checks that what the best are chosen by is measured.

        Args:
          names: of what an evaluation measures.

        Raises:
          InputError: it is not.
        """
        if self.keep_best and self.best_metric not in (known := set(names)):
            raise InputError(
                f"checkpoint best_metric {self.best_metric!r} is not measured; "
                f"{nearest(self.best_metric, known)}"
            )

    def due(self, step: int) -> bool:
        """Returns whether a checkpoint is due after `step` steps."""
        return self.every > 0 and step > 0 and step % self.every == 0
