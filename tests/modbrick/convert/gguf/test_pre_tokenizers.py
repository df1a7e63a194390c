"""Pre-tokenizers of GGUF files, against llama.cpp's own vectors and the patterns as they stand."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import pre_tokenizers

from modbrick.convert.gguf.header import read_gguf
from modbrick.convert.gguf.pre_tokenizers import PRE_TOKENIZERS
from modbrick.convert.gguf.tokenizer import tokenizer_files, unsupported
from tests.modbrick.convert.gguf import gguf_files as files

VECTORS = Path(__file__).parents[3] / "fixtures" / "gguf" / "vocabularies.json"


@functools.cache
def vectors() -> dict[str, Any]:
    data: dict[str, Any] = json.loads(VECTORS.read_text(encoding="utf-8"))
    return data


def metadata_of(merges: list[str], pre: str | None) -> dict[str, Any]:
    """A vocabulary of the symbols for bytes and of what merges make of them."""
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = list(dict.fromkeys([*symbols, *(merge.replace(" ", "") for merge in merges)]))
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [1] * len(tokens),
        "tokenizer.ggml.merges": merges,
        **({} if pre is None else {"tokenizer.ggml.pre": pre}),
    }


def tokenizer_of(path: Path, merges: list[str], pre: str | None) -> tokenizers.Tokenizer:
    """The tokenizer of a GGUF file with such a vocabulary."""
    metadata = read_gguf(files.write(path / "a.gguf", metadata_of(merges, pre))).metadata
    assert unsupported(metadata) is None
    return tokenizers.Tokenizer.from_str(
        tokenizer_files(metadata, "a.gguf")["tokenizer.json"].decode()
    )


@pytest.mark.parametrize("name", vectors()["vocabularies"])
def test_every_vector_of_llama_cpp_passes(tmp_path: Path, name: str) -> None:
    vocabulary = vectors()["vocabularies"][name]
    named = tokenizer_of(tmp_path, vocabulary["merges"], vocabulary["pre"])
    for text, tokens in zip(vectors()["texts"], vocabulary["tokens"], strict=True):
        assert " ".join(named.encode(text, add_special_tokens=False).tokens) == tokens, text


def test_vectors_tell_the_patterns_apart(tmp_path: Path) -> None:
    for name, vocabulary in vectors()["vocabularies"].items():
        other = "gpt-2" if name not in ("gpt-2", "default") else "qwen2"
        wrong = tokenizer_of(tmp_path, vocabulary["merges"], other)
        found = [" ".join(wrong.encode(text).tokens) for text in vectors()["texts"]]
        assert found != vocabulary["tokens"], name


def test_a_file_that_names_none_has_the_default(tmp_path: Path) -> None:
    vocabulary = vectors()["vocabularies"]["default"]
    found = tokenizer_of(tmp_path, vocabulary["merges"], None)
    for text, tokens in zip(vectors()["texts"], vocabulary["tokens"], strict=True):
        assert " ".join(found.encode(text).tokens) == tokens, text


def words(name: str, text: str) -> list[str]:
    """What a text is split into."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    data = json.loads(tokenizer.to_str()) | {"pre_tokenizer": PRE_TOKENIZERS[name].to_mapping()}
    tokenizer = tokenizers.Tokenizer.from_str(json.dumps(data))
    assert tokenizer.pre_tokenizer is not None
    spans = [span for _, span in tokenizer.pre_tokenizer.pre_tokenize_str(text)]
    return [text[start:stop] for start, stop in spans]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a 1234", {"default": "a| |123|4", "falcon": "a| |123|4", "qwen2": "a| |1|2|3|4"}),
        ("1234 x", {"deepseek-llm": "1234| x", "deepseek-coder": "1|2|3|4| x", "dbrx": "123|4| x"}),
        ("a`b|c", {"default": "a|`|b|||c", "falcon": "a|`|b|||c"}),
        ("`|", {"default": "`||", "falcon": "`|"}),
        ("é漢字カ", {"deepseek-llm": "é|漢字カ", "deepseek-coder": "é|漢字カ", "gpt-2": "é漢字カ"}),
        ("\u0561b ა", {"deepseek-llm": "\u0561|b| |ა", "deepseek-coder": "\u0561b| |ა"}),
        ("a\r\n\nb", {"deepseek-llm": "a|\r|\n|\n|b", "qwen2": "a|\r\n\n|b", "mpt": "a|\r\n|\n|b"}),
        ("I'LL she'll", {"qwen2": "I|'LL| she|'ll", "gpt-2": "I|'|LL| she|'ll"}),
        ("a b\u0301", {"deepseek-coder": "a| b|\u0301", "tekken": "a| b\u0301"}),
    ],
    ids=ascii,
)  # fmt: skip
def test_words(text: str, expected: dict[str, str]) -> None:
    assert {name: "|".join(words(name, text)) for name in expected} == expected
