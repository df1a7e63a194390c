"""A run's directory on a disk that fails: one line, the last state whole, never a hang."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from modbrick.checkpoints import (
    CheckpointConfig,
    CheckpointStore,
    Metadata,
    SplitParameters,
    load_checkpoint,
    save_tokenizer,
)
from modbrick.checkpoints.workdir.directory import write_text
from modbrick.config import ModelConfig
from modbrick.decoder.functional import parameter_table
from modbrick.errors import InputError
from modbrick.parameters import Partition
from tests.faults import FAULTS, broken, within

SECONDS = 60.0


@pytest.fixture
def limited() -> Iterator[None]:
    """Lets no file become larger than 64 KiB, whoever writes it, as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("fault", ["no space", "no permission", "read-only"])
@pytest.mark.parametrize("exists", [False, True])
def test_a_directory_that_cannot_be_written_is_refused_at_the_start(
    tmp_path: Path, fault: str, exists: bool
) -> None:
    directory = tmp_path / "run"
    if exists:
        (directory / "checkpoints").mkdir(parents=True)
    with broken(directory, fault), pytest.raises(InputError, match=r"run.* cannot be (made|writ)"):
        within(SECONDS, lambda: CheckpointStore(directory))


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", ["config.json", "tokenizer/tokenizer.json"])
def test_texts_are_whole_or_refused_by_name(tmp_path: Path, fault: str, name: str) -> None:
    directory = tmp_path / "run"
    (directory / "tokenizer").mkdir(parents=True)

    def write(text: str) -> None:
        if name == "config.json":
            write_text(epath.Path(directory) / name, text)
        else:
            save_tokenizer(directory, text)

    write("before")
    with broken(directory, fault):
        if fault == "vanished" and name != "config.json":
            write("after")  # it makes its directory
            return
        with pytest.raises(InputError, match=rf"{name} cannot be written \("):
            within(SECONDS, lambda: write("after"))
    if fault != "vanished":
        assert (directory / name).read_text() == "before"
        assert not list(directory.rglob(".*.tmp")), "and nothing is left lying about"


@pytest.mark.parametrize("fault", ["no permission", "read-only"])
@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_checkpoint_that_cannot_be_written_ends_with_a_line(
    tmp_path: Path, metadata: Metadata, fault: str, asynchronous: bool, same_bits: Any
) -> None:
    parameters = {"w": jnp.arange(100.0)}

    def train() -> None:
        with CheckpointStore(tmp_path, CheckpointConfig(asynchronous=asynchronous)) as store:
            store.save(1, parameters, None, metadata)
            store.wait()
            with broken(tmp_path, fault):
                store.save(2, jax.tree.map(jnp.negative, parameters), None, metadata)
                store.wait()

    with pytest.raises(InputError, match=r"^checkpoint 2 could not be written to [^\n]*$"):
        within(SECONDS, train)
    with CheckpointStore(tmp_path) as store:
        restored = store.restore_latest(parameters, None)
    assert restored is not None
    assert restored.step == 1
    same_bits(restored.parameters, parameters)


def frozen_part(model: ModelConfig) -> SplitParameters:
    partition = Partition(parameter_table(model), trainable=["layer.0"])
    random = np.random.default_rng(0)
    return SplitParameters(
        partition,
        {path: jnp.ones(m.shape) for path, m in partition.trainable.items()},
        {
            path: jnp.asarray(random.normal(size=m.shape), jnp.float32)
            for path, m in partition.frozen.items()
        },
    )


def test_a_directory_that_vanished_is_made_anew_and_complete(
    tmp_path: Path, model_config: ModelConfig, metadata: Metadata
) -> None:
    parameters = frozen_part(model_config)
    directory = tmp_path / "run"
    with CheckpointStore(directory) as store:
        store.save(1, parameters, None, metadata)
        store.wait()
        with broken(directory, "vanished"):
            store.save(2, parameters, None, metadata)
    load_checkpoint(directory, 2)


def test_a_base_that_finds_no_room_ends_with_a_line_and_leaves_nothing(
    tmp_path: Path, model_config: ModelConfig, metadata: Metadata, limited: None, capfd: Any
) -> None:
    parameters = frozen_part(model_config.replace(vocabulary=5000))

    def train() -> None:
        with CheckpointStore(tmp_path) as store:
            store.save(1, parameters, None, metadata)

    with pytest.raises(InputError, match=r"^checkpoint 1 could not be written"):
        within(SECONDS, train)
    assert os.listdir(tmp_path / "checkpoints") == []
    assert os.listdir(tmp_path / "base") == []
    assert "Traceback" not in capfd.readouterr().err
