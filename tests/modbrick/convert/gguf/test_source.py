"""GGUF files as sources: recognised by their header, with a tokenizer from inside or beside."""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from modbrick.convert.gguf.llama import GGUF_LLAMA
from modbrick.convert.gguf.source import open_gguf
from modbrick.convert.opening import open_source
from modbrick.convert.source import LARGEST_TOKENIZER_FILE, Source
from modbrick.errors import InputError
from tests.modbrick.convert.gguf import gguf_files as files
from tests.modbrick.convert.gguf.gguf_files import Typed, floats

FIXTURES = Path(__file__).parents[3] / "fixtures" / "gguf"


def test_recognised_whatever_the_name(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes((FIXTURES / "dense.gguf").read_bytes())
    source = open_source(path)
    assert source.container == "gguf"
    assert source.model_type == "llama"
    assert source.tensors.keys() > {"token_embd.weight", "output_norm.weight"}


def test_the_tokenizer_inside() -> None:
    found = open_gguf(FIXTURES / "sentencepiece.gguf").tokenizer()
    assert json.loads(found["generation_config.json"]) == {"bos_token_id": 1, "eos_token_id": 2}
    assert found.keys() == {"tokenizer.json", "tokenizer_config.json", "generation_config.json"}


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


def test_a_pre_tokenizer_that_nobody_names(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    metadata = {key: value for key, value in METADATA.items() if not key.endswith("ggml.pre")}
    path = files.write(tmp_path / "a.gguf", metadata)
    with caplog.at_level(logging.WARNING, logger="absl"):
        assert "tokenizer.json" in open_gguf(path).tokenizer()
    assert "split as llama.cpp does by default" in caplog.text


METADATA: dict[str, Any] = {
    "general.architecture": "llama",
    "llama.block_count": 1,
    "llama.context_length": 64,
    "llama.embedding_length": 8,
    "llama.feed_forward_length": 12,
    "llama.attention.head_count": 2,
    "llama.attention.head_count_kv": 1,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
    "llama.rope.freq_base": 500.0,
    "llama.rope.scaling.type": "none",
    "llama.expert_count": 0,
    "llama.vocab_size": 5,
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "smollm",
    "tokenizer.ggml.tokens": ["a", "b", "ab", "<s>", "</s>"],
    "tokenizer.ggml.token_type": [1, 1, 1, 3, 3],
    "tokenizer.ggml.scores": [-2.0, -3.0, -1.0, 0.0, 0.0],
    "tokenizer.ggml.merges": ["a b"],
    "tokenizer.ggml.bos_token_id": 3,
    "tokenizer.ggml.eos_token_id": 4,
    "tokenizer.ggml.add_bos_token": True,
}
TENSORS = {"token_embd.weight": floats(5, 8), "rope_freqs.weight": floats(2)}
VALUES: list[Any] = [
    *(0, 1, 2, 3, 7, 8, 2**31, 2**32 - 1, True, False, 0.0, 1.5, -1.0, float("nan"), float("inf")),
    *("", "llama", "gpt2", "yarn", "a b", "\n", "<unk>", [], [1], [1, 2, 6, 4, 2], [0.5, 1.0]),
    *(["a"], ["a", "a"], ["", ""], ["a b", "b a"], ["a", "b", "ab", "ba", "aba"]),
    *(Typed(files.ARRAY, [b"\xff"] * 5, files.STRING), Typed(files.I64, -(2**63))),
    Typed(files.ARRAY, [Typed(files.ARRAY, [1, 2], files.U8)] * 5, files.ARRAY),
    Typed(files.ARRAY, [True] * 5, files.BOOL),
]


def refusal(use: Callable[[Source], object], path: Path) -> str | None:
    try:
        use(open_gguf(path))
    except InputError as error:
        return str(error)
    return None


def fuzz(directory: Path, count: int, seed: int) -> None:
    """Opens files whose metadata are valid values that do not belong there."""
    draw = random.Random(seed)
    outcomes = {"read": 0, "refused": 0}
    path = directory / "fuzzed.gguf"
    path.touch()
    for _ in range(count):
        metadata = dict(METADATA)
        for _ in range(draw.choice([1, 1, 2, 5])):
            key = draw.choice(list(METADATA))
            if draw.random() < 0.2:
                metadata.pop(key, None)
            else:
                metadata[key] = draw.choice(VALUES)
        files.overwrite(path, files.content(metadata, draw.choice([TENSORS, {"x": floats(1)}])))
        for use in (lambda s: GGUF_LLAMA.read_config(s.config, s.where), lambda s: s.tokenizer()):
            message = refusal(use, path)
            outcomes["read" if message is None else "refused"] += 1
            if message is not None:
                assert message.startswith(str(path))
                assert len(message.splitlines()) == 1
                assert len(message) < 2000
    assert min(outcomes.values()) > count // 10, outcomes


def test_metadata_that_contradict_themselves_are_read_or_refused(tmp_path: Path) -> None:
    fuzz(tmp_path, 1500, seed=1)


@pytest.mark.verify
def test_many_metadata_that_contradict_themselves(tmp_path: Path) -> None:
    fuzz(tmp_path, 30_000, seed=2)
