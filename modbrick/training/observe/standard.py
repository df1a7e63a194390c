"""The observers that every run has."""

from __future__ import annotations

from etils import epath

from modbrick.parallel.processes import is_first
from modbrick.schema import to_mapping
from modbrick.training.observe.metrics import MetricsWriter
from modbrick.training.observe.observer import Observers
from modbrick.training.observe.profile import ProfiledSteps, Profiler
from modbrick.training.observe.progress import TrainingProgress
from modbrick.training.observe.router_alarm import RouterAlarm
from modbrick.training.observe.timeline import Timeline
from modbrick.training.observe.weights_and_biases import WeightsAndBiases
from modbrick.training.program import TrainProgram


def standard_observers(
    directory: epath.PathLike,
    program: TrainProgram,
    start_step: int,
    profiled: ProfiledSteps | None = None,
) -> Observers:
    """Returns the observers that write metrics, timeline and profile, and show the progress.

    Args:
      directory: of the run.
      program: what is trained.
      start_step: that this start begins at.
      profiled: steps to profile; None: none.
    """
    logging = program.config.logging
    others = []
    if logging.wandb is not None:
        others.append(WeightsAndBiases(logging.wandb, directory, to_mapping(program.config)))
    return Observers(
        [
            MetricsWriter(str(directory), start_step=start_step, tensorboard=logging.tensorboard),
            TrainingProgress(
                program.config.training.steps,
                start_step,
                logging.progress if is_first() else "none",
                program.task.loss_name,
                RouterAlarm.of_run(program.config),
            ),
            Profiler(directory, profiled),
            Timeline(directory, start_step),
            *others,
        ]
    )
