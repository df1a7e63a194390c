"""A brick and its control; `examples/` run both."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from modbrick.bricks import BrickConfig, Modality
from modbrick.checkpoints import Metadata, save_model
from modbrick.config.families import dense
from modbrick.data import ByteTokenizer
from modbrick.decoder.functional import initial_parameters
from modbrick.errors import InputError
from modbrick.training import control
from modbrick.training.tasks.examples import next_token_examples

MODEL = dense(vocabulary=257, width=8, layers=1, heads=1, feed_forward_width=8, dtype="float32")


def save(directory: Path, seed: int) -> None:
    tokenizer = ByteTokenizer()
    about = Metadata(MODEL, tokenizer=dataclasses.asdict(tokenizer.identity))
    shutil.rmtree(directory, ignore_errors=True)
    parameters = initial_parameters(MODEL, jax.random.key(seed))
    save_model(directory, parameters, about, tokenizer=tokenizer.to_json())


def test_a_model_that_changes_meanwhile_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path / "model", 0)

    def run_task(config: Any, task: Any, directory: Path, **options: Any) -> None:
        save(directory, 0)
        save(tmp_path / "model", 1)

    monkeypatch.setattr(control, "run_task", run_task)
    examples = next_token_examples([([1, 2], [3])] * 2)
    examples |= {"features.look": np.zeros((2, 1, 3))}
    brick = BrickConfig(("features",), Modality(1, width=3, features="look"))
    with pytest.raises(InputError, match=r"model was changed while bricks were trained on it"):
        control.against_control(
            str(tmp_path / "model"), brick, examples, examples, tmp_path, steps=10
        )
