"""A run from its start to its end in this process, as the scripts make it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from modbrick.checkpoints import load_checkpoint
from modbrick.training.observe.observer import Observer
from modbrick.training.run_config import RunConfig
from modbrick.training.running import run_task
from modbrick.training.tasks.task import Task

RATES = ("tokens_per_second", "utilisation", "seconds_per_step", "data_wait_seconds")
"""Names in a record that differ from run to run."""


def run(
    config: RunConfig,
    make_task: Callable[[RunConfig], Task],
    workdir: Path,
    observers: Sequence[Observer] = (),
    *,
    allow_change: Sequence[str] = (),
    allow_base: str = "same",
) -> str:
    """Starts a run, or goes on with it; returns why it ended."""
    return run_task(
        config,
        make_task(config),
        workdir,
        allow_change=allow_change,
        allow_base=allow_base,
        observers=observers,
        devices=jax.devices()[:1],
    )


def parameters(workdir: Path) -> dict[str, Any]:
    """The parameters after the last step, by path."""
    return {path: np.asarray(x) for path, x in load_checkpoint(workdir)[0].items()}


def without_rates(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Records without what differs from run to run."""
    return [{k: v for k, v in record.items() if k not in RATES} for record in records]
