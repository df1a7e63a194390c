"""Retention of checkpoints: Orbax's policies, and the bases that kept checkpoints need."""

from __future__ import annotations

import dataclasses
import datetime
import math
from collections.abc import Mapping
from typing import Any

from etils import epath
from orbax.checkpoint import v1 as ocp

from modbrick.checkpoints import files
from modbrick.checkpoints.base import BaseWriter
from modbrick.checkpoints.config import CheckpointConfig
from modbrick.checkpoints.metadata import DamagedError, Description
from modbrick.checkpoints.workdir.directory import DAMAGED, complete_steps, delete_checkpoint

policies = ocp.training.preservation_policies


class Retention:
    """Deletes the checkpoints of a run that no policy keeps, and the bases that none needs.

    Args:
      root: of the checkpoints.
      config: the policies.
      bases: of the run.
    """

    def __init__(self, root: epath.Path, config: CheckpointConfig, bases: BaseWriter):
        self._root, self._config, self._bases = root, config, bases
        self._known: dict[int, tuple[Mapping[str, float], str | None]] = {}

    def saved(self, description: Description) -> None:
        """Deletes what is not kept any more, now that a checkpoint is complete."""
        self._know(description.step, description)
        known = {step: self._about(step) for step in complete_steps(self._root)}
        metrics = {step: of_step for step, (of_step, _) in known.items()}
        kept = kept_steps(self._config, metrics, description.step)
        for step in set(known) - kept:
            delete_checkpoint(self._root / str(step))
        if not any(path.name.endswith(DAMAGED) for path in self._root.iterdir()):
            # Which bases damaged ones need, nobody can tell.
            self._bases.keep({base for step in kept if (base := known[step][1]) is not None})

    def _about(self, step: int) -> tuple[Mapping[str, float], str | None]:
        """Returns a checkpoint's metrics, and the base that it needs."""
        if step not in self._known:
            try:
                self._know(step, files.read_description(self._root / str(step)))
            except DamagedError:
                self._known[step] = ({}, None)  # cannot be among the best
        return self._known[step]

    def _know(self, step: int, description: Description) -> None:
        split = description.split
        self._known[step] = (description.metrics, None if split is None else split.base)


@dataclasses.dataclass(frozen=True)
class _Checkpoint:
    """A checkpoint as Orbax's policies want it."""

    step: int
    metrics: Mapping[str, float]
    time: datetime.datetime = datetime.datetime.min


def kept_steps(
    config: CheckpointConfig, metrics: Mapping[int, Mapping[str, float]], newest: int
) -> set[int]:
    """Returns the steps to keep.

    Args:
      config: the policies.
      metrics: of every complete checkpoint, by step.
      newest: the step saved last, always kept.
    """
    every = [_Checkpoint(step, metrics[step]) for step in sorted(metrics)]
    # `BestN` keeps all it is given while they are few, and takes NaN for a number.
    scored = [c for c in every if math.isfinite(c.metrics.get(config.best_metric, math.nan))]
    best = policies.BestN(
        get_metric_fn=lambda found: found[config.best_metric],
        reverse=config.best_mode == "min",
        n=config.keep_best,
    )
    latest = policies.LatestN(config.keep_latest)
    choices: list[tuple[Any, list[_Checkpoint]]] = [(latest, every), (best, scored)]
    if config.keep_every:
        choices.append((policies.EveryNSteps(config.keep_every), every))
    kept = {newest}
    for policy, candidates in choices:
        flags = policy.should_preserve(candidates, context=policies.PreservationContext())
        kept |= {c.step for c, keep in zip(candidates, flags, strict=True) if keep}
    return kept
