"""Runs under every name: no checkpoint is lost to a library that takes it for a pattern."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from orbax.checkpoint._src.serialization import ocdbt_utils

from modbrick.checkpoints import CheckpointStore, Metadata, describe, load_checkpoint, save_model
from modbrick.checkpoints.slices import SliceReader
from modbrick.checkpoints.workdir.link import plain_path
from modbrick.config import ModelConfig
from modbrick.decoder.functional import parameter_table
from modbrick.errors import InputError
from tests import remote_store

NAMES = [
    "run[1]",
    "proj [old]/run",
    "lr=[1e-3]",
    "[!a]",
    "[",
    "a*b",
    "**",
    "a?b",
    "a\\b",
    "a\\[b]",
    "~",
    "~root",
    "a b",
    " ",
    "ünï-模型",
    "b\udcffd",
    "a%20b",
    "a#b",
    "a:b",
    "{x}",
    "$HOME",
    "a'b\"c",
    "a\nb",
    "-x",
    "42",
    "x.orbax-checkpoint-tmp",
    "x.deleted",
]


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_what_is_saved_under_any_name_is_read_back(
    tmp_path: Path, name: str, metadata: Metadata, same_bits: Any
) -> None:
    directory = f"{tmp_path}/{name}"
    parameters, optimizer = {"w": jnp.arange(5.0)}, {"m": jnp.ones(3)}
    with CheckpointStore(directory) as store:
        assert store.save(1, parameters, optimizer, metadata)
    assert os.listdir(tmp_path) == [name.split("/")[0]], "and nowhere else"
    with CheckpointStore(directory) as store:
        found = store.restore_latest(parameters, optimizer)
    assert found is not None
    same_bits((found.parameters, found.optimizer_state), (parameters, optimizer))


@pytest.mark.parametrize("name", ["m[1]", "a\\b", "a%20b#?", "b\udcffd"], ids=ascii)
def test_models_and_slices_too(
    tmp_path: Path, name: str, model_config: ModelConfig, metadata: Metadata
) -> None:
    parameters = {
        info.path: np.ones(info.shape, np.float32) for info in parameter_table(model_config)
    }
    path = save_model(f"{tmp_path}/{name}", parameters, metadata)
    load_checkpoint(path)
    reader = SliceReader(path, describe(path))
    for leaf, value in parameters.items():
        index = tuple(slice(0, size) for size in value.shape)
        assert np.array_equal(reader.finish(leaf, index, reader.start(leaf, index)), value)
    reader.verify()


def test_a_checkpoint_that_cannot_be_opened_again_does_not_count(
    tmp_path: Path, metadata: Metadata, monkeypatch: pytest.MonkeyPatch
) -> None:
    parameters = {"w": jnp.arange(5.0)}
    with CheckpointStore(tmp_path / "run") as store:
        store.save(1, parameters, None, metadata)
        store.wait()

        async def merges_nothing(*_: object, **__: object) -> None:
            pass

        monkeypatch.setattr(ocdbt_utils, "merge_ocdbt_per_process_files", merges_nothing)
        store.save(2, parameters, None, metadata)
        with pytest.raises(InputError, match=r"checkpoint 2 could not .* opened again"):
            store.wait()
        assert store.steps() == [1]
    assert os.listdir(tmp_path / "run/checkpoints") == ["1"]


def test_plain_names_stay_as_they_are(tmp_path: Path) -> None:
    path = epath.Path(tmp_path) / "a b" / "ü" / "7"
    assert plain_path(path) is path


def test_a_link_is_the_same_for_all_processes_and_follows_its_directory(tmp_path: Path) -> None:
    directory = epath.Path(tmp_path) / "run[1]"
    assert plain_path(directory / "5") == plain_path(directory / "5")
    assert plain_path(directory / "5").name == "5"
    link = Path(plain_path(directory / "5")).parent
    assert os.readlink(link) == str(directory)
    link.unlink()
    link.symlink_to("/elsewhere")
    assert plain_path(directory / "5").parent == epath.Path(link)
    assert os.readlink(link) == str(directory)
    link.unlink()


def test_links_of_somebody_else_are_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    (tmp_path / "tmp" / f"modbrick-{os.getuid()}").symlink_to(tmp_path)
    with pytest.raises(InputError, match="name another directory"):
        plain_path(epath.Path(tmp_path) / "run[1]" / "5")


def test_remote_patterns_are_refused_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    run = remote_store.install(monkeypatch)
    with pytest.raises(InputError, match="taken for patterns"):
        CheckpointStore(run.parent / "lr=[1e-3]")
