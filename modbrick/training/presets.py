"""Training runs of published sizes, each laid out for several machines."""

from __future__ import annotations

from collections.abc import Mapping

from modbrick.checkpoints import CheckpointConfig
from modbrick.config import ModelConfig
from modbrick.data import DataConfig
from modbrick.objective import ObjectiveConfig
from modbrick.optimizer import CosineSchedule, OptimizerConfig, Schedule
from modbrick.training.machines import Machine, machine_for
from modbrick.training.run_config import (
    EvaluationConfig,
    LoggingConfig,
    RunConfig,
    TrainingConfig,
)


def preset(
    topology: str,
    machines: Mapping[str, Machine],
    model: ModelConfig,
    *,
    tokens: float,
    batch_size: int,
    sequence_length: int,
    learning_rate: float = 3e-4,
    schedule: Schedule = CosineSchedule(warm_up_steps=2_000, end_factor=0.1),  # noqa: B008
    objective: ObjectiveConfig = ObjectiveConfig(),  # noqa: B008
) -> RunConfig:
    """Returns a pretraining run of days: AdamW as is usual, evaluated and saved now and then.

    The data set is left open: `--config.data.path=DATA`.

    Args:
      topology: what to lay it out for, such as `v5p:4x4x4`.
      machines: those that there are.
      model: what to train.
      tokens: to train on, in all.
      batch_size: rows in a batch.
      sequence_length: tokens in a row.
      learning_rate: the highest.
      schedule: of the learning rate.
      objective: weights of the router losses.

    Raises:
      InputError: there is no machine for the topology; names those that there are.
    """
    machine = machine_for(topology, machines)
    return RunConfig(
        model=model,
        data=DataConfig(path="", sequence_length=sequence_length, batch_size=batch_size),
        training=TrainingConfig(
            steps=round(tokens / (batch_size * sequence_length)), microbatches=machine.microbatches
        ),
        optimizer=OptimizerConfig(learning_rate=learning_rate, schedule=schedule),
        objective=objective,
        evaluation=EvaluationConfig(every=2_000, max_tokens=10_000_000),
        checkpoint=CheckpointConfig(every=1_000, keep_every=10_000),
        logging=LoggingConfig(every=10),
        execution=machine.execution,
        mesh=machine.mesh,
    )
