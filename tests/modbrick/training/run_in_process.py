"""A run from its start to its end in this process, as the scripts make it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from modbrick.checkpoints import CheckpointStore, load_checkpoint
from modbrick.parallel import MeshConfig, make_mesh
from modbrick.training.loop import TrainingLoop
from modbrick.training.metadata import run_metadata
from modbrick.training.observe.observer import Observer, Observers
from modbrick.training.observe.standard import standard_observers
from modbrick.training.preemption import PreemptionGuard
from modbrick.training.program import train_program
from modbrick.training.run_config import RunConfig
from modbrick.training.start import describe_run, start_run
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
) -> str:
    """Starts a run, or goes on with it; returns why it ended."""
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    task = make_task(config)
    with (
        jax.set_mesh(mesh),
        PreemptionGuard(mesh) as guard,
        CheckpointStore(workdir, config.checkpoint) as store,
    ):
        program = train_program(config, task, mesh)
        metadata = run_metadata(task, config)
        start = start_run(program, store, metadata, allow_change=allow_change)
        describe_run(workdir, program)
        loop = TrainingLoop(
            program, task.batches(mesh), task.evaluation(mesh), store, metadata, guard
        )
        standard = standard_observers(workdir, program, start.step)
        return loop.run(start, Observers([standard, *observers]))


def parameters(workdir: Path) -> dict[str, Any]:
    """The parameters after the last step, by path."""
    return {path: np.asarray(x) for path, x in load_checkpoint(workdir)[0].items()}


def without_rates(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Records without what differs from run to run."""
    return [{k: v for k, v in record.items() if k not in RATES} for record in records]
