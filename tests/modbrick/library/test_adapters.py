"""Adapters of PEFT as files of bricks, and back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from modbrick.errors import InputError
from modbrick.formats.safetensors import read_safetensors
from modbrick.library import check, export_adapter, import_adapter, open_brick, write_brick
from modbrick.models import open_model

FIXTURES = Path(__file__).parents[2] / "fixtures/peft/llama"
MODEL = open_model(FIXTURES / "model")


def test_in_and_out_again(tmp_path: Path) -> None:
    (stored,) = import_adapter(FIXTURES / "lora", tmp_path / "german.brick", MODEL, tags=["a"])
    assert stored.manifest.name == "german"
    assert stored.manifest.tags == ("a",)
    assert check(stored.manifest, MODEL) == []
    export_adapter([tmp_path / "german.brick"], tmp_path / "peft", "llama")
    name = "adapter_model.safetensors"
    ours, theirs = (
        read_safetensors(place / name) for place in (tmp_path / "peft", FIXTURES / "lora")
    )
    assert ours.keys() == theirs.keys()
    for key, tensor in theirs.items():
        np.testing.assert_array_equal(ours[key].read(), tensor.read())


def test_several_ranks_are_several_files(tmp_path: Path) -> None:
    stored = import_adapter(FIXTURES / "patterns", tmp_path / "german.brick", MODEL)
    assert len(stored) > 1
    assert {brick.path.name for brick in stored} == {
        f"{brick.manifest.name}.brick" for brick in stored
    }
    export_adapter([brick.path for brick in stored], tmp_path / "peft", "llama")
    again = import_adapter(tmp_path / "peft", tmp_path / "again.brick", MODEL)
    assert [brick.parameters for brick in again] == [brick.parameters for brick in stored]


def test_what_needs_the_weights_of_the_model_says_so(tmp_path: Path) -> None:
    import_adapter(FIXTURES / "dora", tmp_path / "german.brick", MODEL)
    with pytest.raises(InputError, match=r"weights of the base are needed.*: name its model"):
        export_adapter([tmp_path / "german.brick"], tmp_path / "peft", "llama")
    other = open_model(FIXTURES.parent / "mixtral/model")
    with pytest.raises(InputError, match=r"german.brick is not for .*mixtral/model"):
        export_adapter([tmp_path / "german.brick"], tmp_path / "peft", "llama", model=other)
    assert not (tmp_path / "peft").exists()
    export_adapter([tmp_path / "german.brick"], tmp_path / "peft", "llama", model=MODEL)
    name = "adapter_model.safetensors"
    ours, theirs = (
        read_safetensors(place / name) for place in (tmp_path / "peft", FIXTURES / "dora")
    )
    assert ours.keys() == theirs.keys()
    for key, tensor in theirs.items():
        np.testing.assert_allclose(ours[key].read(), tensor.read(), rtol=1e-6)


def test_no_file_is_overwritten_and_none_is_written_then(tmp_path: Path) -> None:
    stored = import_adapter(FIXTURES / "patterns", tmp_path / "german.brick", MODEL)
    (tmp_path / "german.brick").unlink()
    with pytest.raises(InputError, match="is there already"):
        import_adapter(FIXTURES / "patterns", tmp_path / "german.brick", MODEL)
    assert not (tmp_path / "german.brick").exists()
    assert len(stored) > 1


def test_bricks_of_different_models_are_no_adapter(tmp_path: Path) -> None:
    import_adapter(FIXTURES / "lora", tmp_path / "one.brick", MODEL)
    mixtral = open_model(FIXTURES.parent / "mixtral/model")
    import_adapter(FIXTURES.parent / "mixtral/lora", tmp_path / "two.brick", mixtral)
    with pytest.raises(InputError, match="are for different models"):
        export_adapter([tmp_path / "one.brick", tmp_path / "two.brick"], tmp_path / "p", "llama")
    stored = open_brick(tmp_path / "one.brick")
    (tmp_path / "other").mkdir()
    write_brick(tmp_path / "other/one.brick", stored.read(), stored.manifest)
    with pytest.raises(InputError, match="have one name"):
        export_adapter(
            [tmp_path / "one.brick", tmp_path / "other/one.brick"], tmp_path / "p", "llama"
        )
    assert not (tmp_path / "p").exists()
