"""What a run's checkpoints say about it: its task, and the model that its bricks are for."""

from __future__ import annotations

import dataclasses
import os

from etils import epath

from modbrick.checkpoints import BaseModel, Metadata
from modbrick.checkpoints.workdir.directory import as_path, is_local
from modbrick.models import open_model
from modbrick.training.run_config import RunConfig
from modbrick.training.tasks.task import Task


def base_model(config: RunConfig) -> BaseModel | None:
    """Returns the record of it; None: the run has no bricks.

    Raises:
      InputError: there is no such model, or it is itself bricks for another.
    """
    origin = config.training.initial_checkpoint
    if not config.bricks or origin is None:
        return None
    stored = open_model(origin)
    fingerprint = stored.fingerprint()
    # Of a run, the checkpoint that is read now: it may be trained on.
    path = stored.contents if isinstance(stored.contents, epath.Path) else as_path(origin)
    return BaseModel(os.path.abspath(path) if is_local(path) else str(path), fingerprint)


def run_metadata(task: Task, config: RunConfig) -> Metadata:
    """Returns what a run's checkpoints say about it: what its task says, and its bricks and base.

    Raises:
      InputError: the data or the model cannot be opened.
    """
    return dataclasses.replace(
        task.metadata(),
        bricks=config.bricks,
        brick_sets=config.brick_sets,
        base=base_model(config),
    )
