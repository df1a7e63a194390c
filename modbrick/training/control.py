"""A brick that sees, and a control that cannot, on one model and the same examples."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import platform
from pathlib import Path
from typing import Any

import numpy as np

from modbrick.bricks import BrickConfig
from modbrick.checkpoints import describe
from modbrick.errors import InputError
from modbrick.models import open_model
from modbrick.schema import from_mapping, to_mapping
from modbrick.training.adaptation import adaptation, with_model
from modbrick.training.run_config import RunConfig
from modbrick.training.running import run_task
from modbrick.training.tasks.arrays import ArrayTask
from modbrick.training.tasks.examples import FEATURES, Examples


def against_control(
    model: str,
    brick: BrickConfig,
    train: Examples,
    held_out: Examples,
    workdir: Path,
    *,
    steps: int,
    batch_size: int = 16,
    learning_rate: float = 3e-3,
) -> dict[str, Any]:
    """Trains a brick and a control, and returns loss and accuracy of both on held-out examples.

    The control is the same brick on the same rows, with features that belong to others: it learns
    what the answers look like, and how frequent each is.

    Args:
      model: directory of the base.
      brick: to be trained.
      train: examples, with features.
      held_out: examples.
      workdir: receives both runs.
      steps: of training.
      batch_size: examples in a step.
      learning_rate: the highest.

    Raises:
      InputError: the model was changed meanwhile.
    """
    config = adaptation({"brick": brick}, learning_rate=learning_rate)
    config = dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, batch_size=batch_size),
        training=dataclasses.replace(config.training, steps=steps, initial_checkpoint=model),
        optimizer=dataclasses.replace(
            config.optimizer,
            schedule=dataclasses.replace(config.optimizer.schedule, warm_up_steps=steps // 10),
        ),
        evaluation=dataclasses.replace(config.evaluation, every=steps, batch_size=batch_size),
        checkpoint=dataclasses.replace(config.checkpoint, every=steps),
    )
    config = from_mapping(RunConfig, with_model(config))
    base = open_model(model)
    before, tokenizer = base.fingerprint(), base.tokenizer()
    results = {}
    mixed = (_mixed(train), _mixed(held_out))
    for name, examples in (("brick", (train, held_out)), ("control", mixed)):
        directory = workdir / name
        run_task(config, ArrayTask(config, *examples, tokenizer=tokenizer), directory)
        results[name] = dict(describe(directory).metrics)
    if open_model(model).fingerprint() != before:
        raise InputError(f"{model} was changed while bricks were trained on it: train again")
    return {
        "machine": platform.machine(),
        "versions": {name: importlib.metadata.version(name) for name in ("modbrick", "jax")},
        "model": {"origin": Path(model).name, "fingerprint": before},
        "brick": to_mapping(brick),
        "examples": {"trained": len(train["tokens"]), "held_out": len(held_out["tokens"])},
        "steps": steps,
        "batch_size": batch_size,
        "held_out": results,
    }


def _mixed(examples: Examples) -> dict[str, np.ndarray]:
    """Returns examples with the features of others."""
    order = np.random.default_rng(1).permutation(len(examples["tokens"]))
    return {
        name: array[order] if name.startswith(FEATURES) else array
        for name, array in examples.items()
    }
