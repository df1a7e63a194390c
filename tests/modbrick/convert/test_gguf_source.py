"""GGUF files as sources: recognised by their header, with a tokenizer from inside or beside."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from modbrick.convert.gguf_source import open_gguf
from modbrick.convert.opening import open_source
from modbrick.convert.source import LARGEST_TOKENIZER_FILE
from modbrick.errors import InputError
from tests.modbrick.convert import gguf_files as files

FIXTURES = Path(__file__).parents[2] / "fixtures" / "gguf"


def test_recognised_whatever_the_name(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes((FIXTURES / "dense.gguf").read_bytes())
    source = open_source(path)
    assert source.container == "gguf"
    assert source.model_type == "llama"
    assert source.tensors.keys() > {"token_embd.weight", "output_norm.weight"}


def test_the_tokenizer_inside() -> None:
    found = open_gguf(FIXTURES / "sentencepiece.gguf").tokenizer()
    assert found.keys() == {"tokenizer.json", "tokenizer_config.json"}


def test_a_tokenizer_that_is_not_supported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    metadata: dict[str, Any] = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "viking"}
    path = files.write(tmp_path / "a.gguf", metadata)
    with caplog.at_level(logging.WARNING, logger="absl"):
        assert open_gguf(path).tokenizer() == {}
    assert "no tokenizer (the pre-tokenizer 'viking'" in caplog.text
    (tmp_path / "tokenizer.json").write_bytes(b"{}")
    assert open_gguf(path).tokenizer() == {"tokenizer.json": b"{}"}
    with (tmp_path / "tokenizer.json").open("r+b") as file:
        file.truncate(LARGEST_TOKENIZER_FILE + 1)
    with pytest.raises(InputError, match="are not read"):
        open_gguf(path).tokenizer()
