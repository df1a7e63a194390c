"""A run of any task, from its start or its last checkpoint to its end."""

from __future__ import annotations

from collections.abc import Sequence

import jax
from etils import epath

from modbrick.checkpoints import CheckpointStore
from modbrick.parallel import make_mesh
from modbrick.parallel.processes import everywhere, say
from modbrick.training.effect import require_effect
from modbrick.training.loop import TrainingLoop
from modbrick.training.metadata import run_metadata
from modbrick.training.observe.observer import Observer, Observers
from modbrick.training.observe.profile import ProfiledSteps
from modbrick.training.observe.standard import standard_observers
from modbrick.training.preemption import PreemptionGuard
from modbrick.training.program import train_program
from modbrick.training.run_config import RunConfig
from modbrick.training.start import check_settings, describe_run, start_run
from modbrick.training.tasks.task import Task


def run_task(
    config: RunConfig,
    task: Task,
    workdir: epath.PathLike,
    *,
    allow_change: Sequence[str] = (),
    allow_base: str = "same",
    profiled: ProfiledSteps | None = None,
    observers: Sequence[Observer] = (),
    devices: Sequence[jax.Device] | None = None,
) -> str:
    """Trains until the last step or a signal; started again, it goes on. Every process calls it.

    What does not fit is refused before anything is written.

    Args:
      config: of the run.
      task: what it is trained for.
      workdir: receives checkpoints, metrics and the config.
      allow_change: what may differ from the run to be continued.
      allow_base: on which weights bricks that the run begins with may have been trained: `same`,
        those of its model, or `any` of the same shapes.
      profiled: steps to profile.
      observers: notified beside the standard ones.
      devices: to run on; None: all.

    Returns:
      `FINISHED`, or the name of the signal that asked to stop.

    Raises:
      InputError: config, task, model and workdir do not fit together, or writing fails.
    """
    lengths = [x.shape[1] for x in task.batch_shapes().values() if len(x.shape) == 2]
    for line in require_effect(config, lengths):
        say(f"note: {line}")
    metadata = everywhere(lambda: run_metadata(task, config, workdir))
    steps = None if profiled is None else [profiled.first, profiled.last]
    settings = {
        "workdir": str(workdir),
        "profile": steps,
        "allow_change": sorted(allow_change),
        "allow_base": allow_base,
    }
    check_settings(config, metadata, settings)
    mesh = make_mesh(config.mesh, devices)
    with jax.set_mesh(mesh):
        program = train_program(config, task, mesh)
        batches, evaluate = task.batches(mesh), task.evaluation(mesh)
        # What a trace refuses is refused here; the first step finds the trace and makes none.
        jax.eval_shape(program.step, program.state, program.batch())
        with (
            PreemptionGuard(mesh) as guard,
            CheckpointStore(workdir, config.checkpoint, warn=say) as store,
        ):
            start = start_run(
                program, store, metadata, allow_change=allow_change, allow_base=allow_base
            )
            describe_run(workdir, program)
            loop = TrainingLoop(program, batches, evaluate, store, metadata, guard)
            standard = standard_observers(workdir, program, start.step, profiled)
            return loop.run(start, Observers([standard, *observers]))
