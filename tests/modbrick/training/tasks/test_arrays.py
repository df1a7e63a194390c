"""Training on examples in memory, with and without features."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from modbrick.bricks import BrickConfig, Modality
from modbrick.checkpoints import Metadata, describe, save_model
from modbrick.config.families import dense
from modbrick.data import DataConfig
from modbrick.decoder.functional import initial_parameters
from modbrick.errors import InputError
from modbrick.training.adaptation import adaptation
from modbrick.training.run_config import RunConfig, check_identity
from modbrick.training.tasks.arrays import ArrayTask, Shuffled, next_token_examples
from tests.modbrick.training.run_in_process import parameters, run

pytestmark = pytest.mark.usefixtures("quick_compilation")
MODEL = dense(vocabulary=32, width=16, layers=1, heads=2, feed_forward_width=16, dtype="float32")
MARK = 31


def seen(count: int, seed: int) -> dict[str, np.ndarray]:
    """Examples whose answer is in their feature alone: which of three numbers is the largest?"""
    features = np.random.default_rng(seed).normal(size=(count, 1, 3)).astype(np.float32)
    rows = [([1, MARK], [int(x.argmax()) + 10]) for x in features]
    return next_token_examples(rows) | {"features.look": features}


def config_of(model: Path) -> RunConfig:
    brick = BrickConfig(("features",), Modality(MARK, 3, "look", hidden=16))
    config = adaptation({"eye": brick}, learning_rate=0.03)
    return dataclasses.replace(
        config,
        model=MODEL,
        data=DataConfig(path="", batch_size=16, sequence_length=2),
        training=dataclasses.replace(config.training, steps=60, initial_checkpoint=str(model)),
        optimizer=dataclasses.replace(
            config.optimizer,
            schedule=dataclasses.replace(config.optimizer.schedule, warm_up_steps=2),
        ),
        evaluation=dataclasses.replace(config.evaluation, every=60, batch_size=24),
        checkpoint=dataclasses.replace(config.checkpoint, every=30),
    )


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("model")
    save_model(directory, initial_parameters(MODEL, jax.random.key(0)), Metadata(MODEL))
    return directory


def test_a_brick_learns_to_look_and_its_run_goes_on(model: Path, tmp_path: Path) -> None:
    config = config_of(model)

    def task(config: RunConfig) -> ArrayTask:
        return ArrayTask(config, seen(200, 0), seen(50, 1))

    run(config, task, tmp_path / "whole")
    metrics = describe(tmp_path / "whole").metrics
    assert metrics["accuracy"] > 0.8, "a third without looking"
    assert metrics["loss"] < 3.3, "a model of random weights has 3.47"
    half = dataclasses.replace(config.training, steps=30)
    short = dataclasses.replace(config, training=half)
    run(short, task, tmp_path / "parts")
    run(config, task, tmp_path / "parts", allow_change=["training.steps"])
    assert describe(tmp_path / "parts").step == 60
    with pytest.raises(InputError, match="examples"):
        run(config, lambda c: ArrayTask(c, seen(200, 2), seen(50, 1)), tmp_path / "whole")
    assert set(parameters(tmp_path / "whole")) == {
        f"bricks.eye.decoder.features.{leaf}" for leaf in ("down", "down_bias", "up", "up_bias")
    }


@pytest.mark.parametrize(("name", "value"), [("seed", 7), ("batch_size", 8)])
def test_order_and_size_of_batches_belong_to_a_run(name: str, value: int) -> None:
    config = config_of(Path("nowhere"))
    other = dataclasses.replace(config, data=dataclasses.replace(config.data, **{name: value}))
    saved, now = (ArrayTask(c, seen(4, 0), seen(4, 1)).metadata().run for c in (config, other))
    with pytest.raises(InputError, match=rf"data\.{name}"):
        check_identity(saved, now, (), "RUN")


def test_each_epoch_is_every_example_once_in_an_order_of_its_own() -> None:
    examples = {"tokens": np.arange(6)[:, None]}
    batches = Shuffled(examples, seed=3, batch=4, rows=(0, 1, 2, 3))
    drawn = np.concatenate([next(batches)["tokens"][:, 0] for _ in range(3)])
    assert sorted(drawn[:6]) == sorted(drawn[6:]) == list(range(6))
    assert not np.array_equal(drawn[:6], drawn[6:])
    again = Shuffled(examples, seed=3, batch=4, rows=(2, 3))
    again.set_state(4)
    assert np.array_equal(next(again)["tokens"][:, 0], drawn[6:8])
    assert again.get_state() == 8


def test_only_answers_count() -> None:
    found = next_token_examples([([1, 2, 3], [4]), ([5], [6, 7])], padding=9)
    assert found["tokens"].tolist() == [[1, 2, 3], [5, 6, 7]]
    assert found["targets"].tolist() == [[2, 3, 4], [6, 7, 9]]
    assert found["loss_mask"].tolist() == [[0, 0, 1], [1, 1, 0]]


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"targets": None}, "examples have no targets"),
        ({"look": np.zeros((4, 1, 3))}, "features begin with 'features.'"),
        ({"targets": np.zeros((4, 3), np.int32)}, "targets of examples have shape"),
        ({"features.look": np.zeros((3, 1, 3))}, "features.look of examples: 3 for 4 examples"),
        ({"features.more": np.zeros((4, 1, 3))}, "do not fit held-out ones"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(change: dict[str, Any], complaint: str) -> None:
    examples = {n: x for n, x in (seen(4, 0) | change).items() if x is not None}
    with pytest.raises(InputError, match=complaint):
        ArrayTask(config_of(Path("nowhere")), examples, seen(4, 1))


@pytest.mark.parametrize(
    ("features", "complaint"),
    [
        ({}, r"bricks\.eye takes features: features\.look of shape \[N, P, 3\] are missing"),
        (
            {"look": np.zeros((4, 1, 2))},
            r"features\.look have shape .*eye takes \[N, P, 3",
        ),
        ({"look": np.zeros((4, 3))}, r"features\.look have shape .*eye takes \[N, P, 3"),
        (
            {"look": np.zeros((4, 1, 3)), "loook": np.zeros((4, 1, 3))},
            r"no brick takes features features\.loook; did you mean 'look'",
        ),
    ],
)
def test_features_are_those_that_bricks_take(features: dict[str, Any], complaint: str) -> None:
    examples = next_token_examples([([1, MARK], [10])] * 4)
    examples |= {f"features.{name}": array for name, array in features.items()}
    with pytest.raises(InputError, match=complaint):
        ArrayTask(config_of(Path("nowhere")), examples, examples)
