"""No loader takes weights that are not finite without a word, whatever format and dtype."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import modbrick
from modbrick.checkpoints import Metadata, describe, save_model
from modbrick.convert import export_checkpoint, format_named, import_checkpoint, prepare_export
from modbrick.errors import InputError
from modbrick.models import open_model

ROOT = Path(__file__).parents[3]
GGUF = ROOT / "tests/fixtures/gguf/dense.gguf"
LLAMA = ROOT / "tests/fixtures/llama/bfloat16_yarn"
THEIRS = "model.layers.1.input_layernorm.weight"


@pytest.fixture(scope="module")
def parameters() -> dict[str, Any]:
    return modbrick.load_parameters(LLAMA, dtype="float32")


def save(directory: Path, parameters: dict[str, Any], extra: dict[str, Any]) -> Path:
    values = dict(parameters)
    values["norm.scale"] = values["norm.scale"].at[0].set(np.nan)
    config = modbrick.open_checkpoint(LLAMA).model
    save_model(directory, values, Metadata(config, extra=extra))
    return directory


LOADERS: dict[str, Callable[[Path], object]] = {
    "load_model": modbrick.load_model,
    "load_parameters": modbrick.load_parameters,
    "in bfloat16": lambda path: modbrick.load_parameters(path, dtype="bfloat16"),
    "initial checkpoint": lambda path: open_model(path).read(config=open_model(path).config),
}


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_of_others(tmp_path: Path, dtype: str, value: float) -> None:
    source = Path(shutil.copytree(LLAMA, tmp_path / "source"))
    stored = {
        name: np.asarray(tensor).astype(jnp.dtype(dtype))
        for name, tensor in load_file(source / "model.safetensors").items()
    }
    stored[THEIRS][1] = value
    save_file(stored, source / "model.safetensors")
    for load in (*LOADERS.values(), lambda path: import_checkpoint(opened(path), tmp_path / "x")):
        with pytest.raises(InputError, match=rf"1 weights are not finite: 1 in {THEIRS} \("):
            load(source)
    assert not (tmp_path / "x").exists()


def opened(path: Path) -> Any:
    return modbrick.open_checkpoint(path)


@pytest.mark.parametrize("name", LOADERS)
def test_of_ones_own(tmp_path: Path, parameters: dict[str, Any], name: str) -> None:
    own = save(tmp_path / "own", parameters, {})
    with pytest.raises(InputError, match=r"own, step 0: weights are not finite: 1 in norm\.scale"):
        LOADERS[name](own)
    modbrick.load_parameters(own, paths=["embedding"])


def test_out_to_others(tmp_path: Path, parameters: dict[str, Any]) -> None:
    export = prepare_export(save(tmp_path / "own", parameters, {}), format_named("llama"))
    with pytest.raises(InputError, match=r"weights are not finite: .*export --allow_not_finite"):
        export_checkpoint(export, tmp_path / "theirs")
    assert not (tmp_path / "theirs").exists()
    export_checkpoint(export, tmp_path / "theirs", allow_not_finite=True)
    assert np.isnan(load_file(tmp_path / "theirs/model.safetensors")["model.norm.weight"]).sum() < 2


def test_what_was_imported_so_is_loaded_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = Path(shutil.copytree(LLAMA, tmp_path / "source"))
    stored = load_file(source / "model.safetensors")
    stored[THEIRS] = stored[THEIRS].copy()
    stored[THEIRS][1] = np.inf
    save_file(stored, source / "model.safetensors")
    import_checkpoint(opened(source), tmp_path / "ours", allow_not_finite=True)
    assert describe(tmp_path / "ours").metadata.extra["not_finite"] == 1
    with caplog.at_level(logging.WARNING, logger="absl"):
        modbrick.load_parameters(tmp_path / "ours")
    assert "weights are not finite: 1 in segments.0." in caplog.text
    export_checkpoint(prepare_export(tmp_path / "ours", format_named("llama")), tmp_path / "theirs")


@pytest.mark.parametrize("name", ["token_embd", "blk.0.attn_q", "blk.0.attn_k"])
def test_of_gguf(tmp_path: Path, name: str) -> None:
    """Of float32, float16 and bfloat16."""
    data = bytearray(GGUF.read_bytes())
    first = modbrick.open_checkpoint(GGUF).tensors[f"{name}.weight"].read(0, 1)
    at = data.find(first.tobytes())
    assert at > 0
    data[at : at + first.itemsize] = np.full((), np.nan, first.dtype).tobytes()
    (tmp_path / "model.gguf").write_bytes(data)
    for load in LOADERS.values():
        with pytest.raises(InputError, match=rf"1 weights are not finite: 1 in {name}\.weight"):
            load(tmp_path / "model.gguf")
