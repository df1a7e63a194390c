"""Start of a run: new, from a model, or from its own last checkpoint; and what is refused."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import chex
import jax
import numpy as np
import pytest

from modbrick.checkpoints import CheckpointStore, Metadata, load_checkpoint, save_model
from modbrick.config import SegmentConfig
from modbrick.config.families import dense
from modbrick.errors import InputError
from modbrick.parallel import MeshConfig, make_mesh
from modbrick.training.program import TrainProgram, train_program
from modbrick.training.run_config import RunConfig
from modbrick.training.start import Start, describe_run, start_run
from tests.configs import tiny
from tests.modbrick.training.tasks.regression import Regression

pytestmark = pytest.mark.usefixtures("quick_compilation")
CONFIG = dataclasses.replace(
    tiny.get_config(),
    model=dense(vocabulary=64, width=16, layers=1, heads=2, feed_forward_width=16, dtype="float32"),
)


def changed(**training: Any) -> RunConfig:
    return dataclasses.replace(CONFIG, training=dataclasses.replace(CONFIG.training, **training))


@contextlib.contextmanager
def opened(
    workdir: Path, config: RunConfig = CONFIG
) -> Iterator[tuple[TrainProgram, CheckpointStore, Metadata]]:
    mesh, task = make_mesh(MeshConfig(), jax.devices()[:1]), Regression(config)
    with jax.set_mesh(mesh), CheckpointStore(workdir, config.checkpoint) as store:
        yield train_program(config, task, mesh), store, task.metadata()


def save(workdir: Path, step: int, metrics: dict[str, float]) -> Start:
    """Saves the first state of a run as if it were a later one."""
    with opened(workdir) as (program, store, metadata):
        start = start_run(program, store, metadata)
        metadata = dataclasses.replace(metadata, data={"row": 4 * step})
        state = start.state
        store.save(step, program.parameters_of(state), state.optimizer, metadata, metrics)
        return start


def test_a_new_run_starts_from_its_seed(tmp_path: Path) -> None:
    starts = []
    for name, seed in (("one", 0), ("same", 0), ("other", 1)):
        with opened(tmp_path / name, changed(seed=seed)) as (program, store, metadata):
            starts.append(start_run(program, store, metadata))
            chex.assert_trees_all_equal_shapes_and_dtypes(starts[-1].state, program.state)
    one, same, other = starts
    assert (one.step, one.row, one.metrics) == (0, 0, None)
    chex.assert_trees_all_equal(one.state, same.state)
    with pytest.raises(AssertionError):
        chex.assert_trees_all_equal(one.state.trainable, other.state.trainable)


def test_a_run_goes_on_from_its_last_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = save(tmp_path, 7, {"error": 0.5})
    with opened(tmp_path) as (program, store, metadata):
        start = start_run(program, store, metadata)
    assert capsys.readouterr().out == "continuing from step 7\n"
    assert (start.step, start.row, start.metrics) == (7, 28, {"error": 0.5})
    chex.assert_trees_all_equal(start.state.trainable, first.state.trainable)
    chex.assert_trees_all_equal(start.state.optimizer, first.state.optimizer)


def test_another_run_is_refused_unless_the_change_is_allowed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path, 7, {})
    with opened(tmp_path, changed(steps=99)) as (program, store, metadata):
        with pytest.raises(InputError, match=r"training\.steps: 12 -> 99.*--allow_change=training"):
            start_run(program, store, metadata)
        start = start_run(program, store, metadata, allow_change=["training.steps"])
    assert start.step == 7
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["continuing with a change: training.steps: 12 -> 99", "continuing from step 7"]


def test_a_new_run_may_start_from_a_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = save(tmp_path / "model", 7, {})
    config = changed(initial_checkpoint=str(tmp_path / "model"), seed=5)
    with opened(tmp_path / "run", config) as (program, store, metadata):
        start = start_run(program, store, metadata)
    assert capsys.readouterr().out == f"starting from {tmp_path / 'model'}, step 7\n"
    assert (start.step, start.row, start.metrics) == (0, 0, None)
    chex.assert_trees_all_equal(start.state.trainable, model.state.trainable)


def test_no_run_starts_from_weights_that_are_not_finite(tmp_path: Path) -> None:
    save(tmp_path / "model", 7, {})
    parameters, description = load_checkpoint(tmp_path / "model")
    broken = {**parameters, "norm.scale": parameters["norm.scale"].at[2].set(np.nan)}
    save_model(tmp_path / "broken", broken, Metadata(description.metadata.model))
    config = changed(initial_checkpoint=str(tmp_path / "broken"))
    with (
        opened(tmp_path / "run", config) as (program, store, metadata),
        pytest.raises(
            InputError, match=r"broken, step 0: weights are not finite: 1 in norm\.scale"
        ),
    ):
        start_run(program, store, metadata)


def test_what_the_config_computes_otherwise_than_the_model_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path / "model", 7, {})
    config = changed(initial_checkpoint=str(tmp_path / "model"))
    (segment,) = config.model.segments
    attention = dataclasses.replace(segment.layer.attention, window=3)
    layer = dataclasses.replace(segment.layer, attention=attention)
    segments = (SegmentConfig(layer, segment.repeats),)
    config = dataclasses.replace(config, model=config.model.replace(segments=segments))
    with opened(tmp_path / "run", config) as (program, store, metadata):
        start_run(program, store, metadata)
    _, *lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "with another config than it was saved with: segments[0].layer.attention.window: null -> 3"
    ]


def test_a_directory_says_what_its_run_is(tmp_path: Path) -> None:
    with opened(tmp_path) as (program, _, _):
        describe_run(tmp_path, program)
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["training"]["steps"] == CONFIG.training.steps
    assert not (tmp_path / "tokenizer").exists(), "this task has none"


def test_the_step_counts_in_int32(tmp_path: Path) -> None:
    save(tmp_path, 7, {})
    with opened(tmp_path) as (program, store, metadata):
        step = start_run(program, store, metadata).state.step
    assert step.dtype == np.int32
    assert step.sharding.is_equivalent_to(program.state.step.sharding, 0)
