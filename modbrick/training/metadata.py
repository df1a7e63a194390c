"""What a run's checkpoints say about it: its task, and the model that its bricks are for."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping

from etils import epath

from modbrick.checkpoints import BaseModel, Metadata, describe
from modbrick.checkpoints.workdir.directory import (
    CHECKPOINTS,
    complete_steps,
    is_local,
)
from modbrick.library import open_brick
from modbrick.models import open_model
from modbrick.paths import as_path
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


def initial_fingerprints(config: RunConfig, workdir: epath.PathLike) -> dict[str, str]:
    """Returns the fingerprints of the values that bricks of a run begin with, by name.

    Of a file that is not there any more it is what the run's last checkpoint says.

    Raises:
      InputError: a file is no brick; or it is not there, and the run has no checkpoint.
    """
    before: Mapping[str, str] = {}
    if complete_steps(as_path(workdir) / CHECKPOINTS):
        before = describe(workdir).metadata.run.get("initial_bricks", {})
    return {
        name: before[name]
        if name in before and not as_path(file).exists()
        else open_brick(file).fingerprint()
        for name, file in config.initial_bricks.items()
    }


def run_metadata(task: Task, config: RunConfig, workdir: epath.PathLike) -> Metadata:
    """Returns what a run's checkpoints say about it: what its task says, and its bricks and base.

    Args:
      task: what is trained.
      config: of the run.
      workdir: directory of the run, which may have checkpoints.

    Raises:
      InputError: the data, the model or the file of a brick cannot be opened.
    """
    metadata = task.metadata()
    run = metadata.run
    if config.initial_bricks:
        run = {**run, "initial_bricks": initial_fingerprints(config, workdir)}
    return dataclasses.replace(
        metadata,
        run=run,
        bricks=config.bricks,
        brick_sets=config.brick_sets,
        base=base_model(config),
    )
