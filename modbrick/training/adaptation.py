"""Runs that train customized bricks on a model, whatever model that is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from modbrick.bricks import BrickConfig
from modbrick.checkpoints import CheckpointConfig
from modbrick.data import DataConfig
from modbrick.errors import InputError
from modbrick.models import open_model
from modbrick.optimizer import CosineSchedule, OptimizerConfig
from modbrick.schema import is_mapping, to_mapping
from modbrick.training.run_config import EvaluationConfig, LoggingConfig, RunConfig, TrainingConfig

OF_CHECKPOINT: Any = None
"""In a config file, in place of a model: that of `training.initial_checkpoint`."""


def adaptation(bricks: Mapping[str, BrickConfig], *, learning_rate: float) -> RunConfig:
    """Returns a run of some hundred steps that trains bricks; model and data are left open.

    `--config.training.initial_checkpoint=MODEL --config.data.path=DATA`; the bricks train without
    weight decay, and routers without their losses.

    Args:
      bricks: by name.
      learning_rate: the highest.
    """
    return RunConfig(
        model=OF_CHECKPOINT,
        data=DataConfig(path="", sequence_length=256, batch_size=8),
        training=TrainingConfig(steps=300),
        optimizer=OptimizerConfig(
            learning_rate=learning_rate,
            schedule=CosineSchedule(warm_up_steps=20, end_factor=0.1),
            weight_decay=0.0,
        ),
        evaluation=EvaluationConfig(every=100, max_tokens=40_000),
        checkpoint=CheckpointConfig(every=100),
        logging=LoggingConfig(every=10),
        bricks=bricks,
    )


def with_model(config: Any) -> Any:
    """Returns a run's config, a record or plain data, with the model that it leaves open.

    Raises:
      InputError: neither a model nor an initial checkpoint is named, or there is no such one.
    """
    data = config if is_mapping(config) else to_mapping(config)
    if data.get("model") is not OF_CHECKPOINT:
        return config
    origin = (data.get("training") or {}).get("initial_checkpoint")
    if origin is None:
        raise InputError("the config leaves the model open: set training.initial_checkpoint")
    return {**data, "model": to_mapping(open_model(origin).config)}
