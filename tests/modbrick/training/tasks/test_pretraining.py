"""Pretraining: what it takes from the config and the data, and what it refuses."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import pytest

from modbrick.checkpoints import CheckpointConfig
from modbrick.data import Dataset
from modbrick.data.batches import FIELDS
from modbrick.errors import InputError
from modbrick.flops import packed_flops
from modbrick.parallel import MeshConfig, make_mesh
from modbrick.schema import to_mapping
from modbrick.training.run_config import EvaluationConfig, RunConfig
from modbrick.training.tasks.pretraining import Pretraining
from tests.configs import tiny
from tests.modbrick.data.conftest import random_texts, write_dataset

CONFIG = tiny.get_config()


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    directory = tmp_path_factory.mktemp("pretraining") / "data"
    texts = {"prose": random_texts(1, 20, 60)}
    write_dataset(directory, {"train": texts, "held_out": texts})
    return dataclasses.replace(CONFIG, data=dataclasses.replace(CONFIG.data, path=str(directory)))


def mesh() -> jax.sharding.Mesh:
    return make_mesh(MeshConfig(), jax.devices()[:1])


def test_what_is_compiled_needs_no_data() -> None:
    shapes = Pretraining(CONFIG).batch_shapes()
    assert set(shapes) == set(FIELDS)
    assert {shape.shape for shape in shapes.values()} == {(4, 32)}


def test_batches_are_those_that_were_promised_and_weighed(config: RunConfig) -> None:
    task = Pretraining(config)
    with task.batches(mesh()) as batches:
        batch = next(batches)
    for name, promised in task.batch_shapes().items():
        assert (batch[name].shape, batch[name].dtype) == (promised.shape, promised.dtype)
    work = task.work(batch)
    assert work.tokens == 4 * 32
    assert work.flops == packed_flops(config.model, batch)
    half = {name: array[:2] for name, array in batch.items()}
    assert task.work(half).tokens == 4 * 32, "a process may hold a part of the batch"
    assert task.work(half).flops == 2 * packed_flops(config.model, half)


def test_checkpoints_say_which_run_and_which_tokenizer(config: RunConfig) -> None:
    metadata, dataset = Pretraining(config).metadata(), Dataset.open(config.data.path)
    assert metadata.model == config.model
    assert metadata.run == config.identity(dataset)
    assert metadata.tokenizer == to_mapping(dataset.tokenizer_identity)
    assert metadata.data == {}


@pytest.mark.parametrize(
    ("section", "change", "message"),
    [
        ("model", {"vocabulary": 100}, "vocabulary"),
        ("data", {"epochs": 1, "batch_size": 1000}, r"1 data\.epochs are 1 steps"),
        ("data", {"mixture": {"verse": 1.0}}, "verse"),
    ],
)
def test_data_that_do_not_suit_are_refused(
    config: RunConfig, section: str, change: dict[str, object], message: str
) -> None:
    wrong = dataclasses.replace(getattr(config, section), **change)
    task = Pretraining(dataclasses.replace(config, **{section: wrong}))
    with pytest.raises(InputError, match=message):
        task.batches(mesh())


def test_a_run_without_evaluation_needs_no_held_out_text(config: RunConfig, tmp_path: Path) -> None:
    write_dataset(tmp_path / "data", {"train": {"prose": random_texts(1, 20, 60)}})
    data = dataclasses.replace(config.data, path=str(tmp_path / "data"))
    config = dataclasses.replace(config, data=data)
    unasked = dataclasses.replace(config, evaluation=EvaluationConfig(every=0))
    found = Pretraining(unasked).evaluation(mesh())({}, lambda: False)
    assert found is not None
    # Not empty, as those of an evaluation are that a signal gave up: it would be made again.
    assert found.metrics == found.record == {"documents": 0}
    asked = dataclasses.replace(config, evaluation=EvaluationConfig(every=2))
    best = dataclasses.replace(unasked, checkpoint=CheckpointConfig(every=0, keep_best=1))
    for wanted in (asked, best):
        with pytest.raises(InputError, match=r"held_out split has no document.*every to 0"):
            Pretraining(wanted).evaluation(mesh())
