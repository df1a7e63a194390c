"""Tokenizers in GGUF files become the tokenizers that they were."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from modbrick.convert.gguf import tokenizer as gguf_tokenizer
from modbrick.convert.gguf.header import read_gguf
from modbrick.convert.gguf.tokenizer import tokenizer_files, unsupported
from modbrick.data import Tokenizer
from modbrick.data.tokenizers.files import tokenizer_from_json
from modbrick.errors import InputError
from tests.modbrick.convert.gguf import gguf_files as files
from tests.modbrick.convert.gguf.gguf_files import Typed

TRAINING = (Path(__file__).read_text() + "It's 2024, isn't it? 12345678 I'LL  we'Re\r\n\r\n") * 2
TEXTS = [
    TRAINING,
    "",
    " ",
    "\n\n  \t x",
    "don't DON'T 1234567 ½ Ⅷ x²",
    "naïve 東京 😀 e\u0301 مرحبا",
    "<|end|> in a text, <|tool|> too",
    "CamelCaseHTTPServer snake_case __init__",
]

GPT_2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
PATTERNS = {
    "gpt-2": [GPT_2],
    "smollm": [r"\p{N}", GPT_2],
    "starcoder": [r"\p{N}", GPT_2],
    "refact": [r"\p{N}", GPT_2],
    "smaug-bpe": [LLAMA_3],
    "llama-bpe": [LLAMA_3],
    "llama-v3": [LLAMA_3],
    "llama3": [LLAMA_3],
    "tekken": [TEKKEN],
}
"""Patterns that split text, by name of the model, each within the parts of the one before."""


def trained(pre: str) -> tokenizers.Tokenizer:
    """A small byte-level BPE whose text is split by the patterns as they stand above."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    splits = [
        pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated") for pattern in PATTERNS[pre]
    ]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        [TRAINING],
        trainers.BpeTrainer(
            vocab_size=600,
            special_tokens=["<|start|>", "<|end|>", "<unk>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer.encode_special_tokens = True
    return tokenizer


def metadata_of(tokenizer: tokenizers.Tokenizer, pre: str) -> dict[str, Any]:
    data = json.loads(tokenizer.to_str())
    vocabulary = tokenizer.get_vocab()
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": sorted(vocabulary, key=lambda token: vocabulary[token]),
        "tokenizer.ggml.token_type": [3] * 3 + [1] * (len(vocabulary) - 3),
        "tokenizer.ggml.merges": [" ".join(pair) for pair in data["model"]["merges"]],
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 1,
    }


def stored(path: Path, metadata: dict[str, Any]) -> dict[str, bytes]:
    """The tokenizer's files, by way of a GGUF file."""
    found = read_gguf(files.write(path / "a.gguf", metadata)).metadata
    assert unsupported(found) is None
    return tokenizer_files(found, "a.gguf")


def read(path: Path, metadata: dict[str, Any]) -> Tokenizer:
    return tokenizer_from_json(stored(path, metadata)["tokenizer.json"].decode(), "a.gguf")


@pytest.mark.parametrize("pre", PATTERNS)
def test_ids_are_those_of_the_original(tmp_path: Path, pre: str) -> None:
    original = trained(pre)
    found = read(tmp_path, metadata_of(original, pre))
    for text in TEXTS:
        ids = original.encode(text, add_special_tokens=False).ids
        assert found.encode(text).tolist() == ids
        assert found.decode(ids) == text


def test_pre_tokenizers_differ_where_their_patterns_do(tmp_path: Path) -> None:
    metadata = metadata_of(trained("gpt-2"), "gpt-2")
    ids = {}
    for pre in ("gpt-2", "smollm", "llama-bpe", "tekken"):
        found = read(tmp_path, metadata | {"tokenizer.ggml.pre": pre})
        ids[pre] = tuple(found.encode(TRAINING).tolist())
    assert len(set(ids.values())) == len(ids)


def test_whole_words_are_taken_before_merges(tmp_path: Path) -> None:
    metadata = metadata_of(trained("smaug-bpe"), "smaug-bpe")
    metadata["tokenizer.ggml.tokens"] += ["zqzqz"]
    metadata["tokenizer.ggml.token_type"] += [1]
    last = len(metadata["tokenizer.ggml.tokens"]) - 1
    assert last not in read(tmp_path, metadata).encode("zqzqz").tolist()
    found = read(tmp_path, metadata | {"tokenizer.ggml.pre": "llama-bpe"})
    assert found.encode("zqzqz").tolist() == [last]


def test_tokens_without_types_are_normal(tmp_path: Path) -> None:
    metadata = metadata_of(trained("gpt-2"), "gpt-2")
    del metadata["tokenizer.ggml.token_type"]
    assert json.loads(stored(tmp_path, metadata)["tokenizer.json"])["added_tokens"] == []


def test_special_tokens(tmp_path: Path) -> None:
    metadata = metadata_of(trained("gpt-2"), "gpt-2")
    metadata["tokenizer.ggml.tokens"] += ["<|tool|>"]
    metadata["tokenizer.ggml.token_type"] += [4]
    tool = len(metadata["tokenizer.ggml.tokens"]) - 1
    found = read(tmp_path, metadata)
    assert tool in found.encode("a <|tool|> b").tolist(), "defined by users: matched in any text"
    assert 1 not in found.encode("a <|end|> b").tolist(), "special: plain text in a text"
    assert found.decode([0, *found.encode("a").tolist(), 1, tool]) == "a<|tool|>"
    text = stored(tmp_path, metadata)["tokenizer.json"].decode()
    assert tokenizers.Tokenizer.from_str(text).encode("a <|end|> b").ids.count(1) == 1


@pytest.mark.parametrize(
    ("settings", "around"),
    [
        ({}, ([], [])),
        ({"add_bos_token": True}, ([0], [])),
        ({"add_eos_token": True}, ([], [1])),
        ({"add_bos_token": True, "add_eos_token": True}, ([0], [1])),
        ({"pre": "llama-bpe"}, ([0], [])),
        ({"pre": "llama-bpe", "add_bos_token": False}, ([], [])),
    ],
)
def test_tokens_around_a_text(
    tmp_path: Path, settings: dict[str, Any], around: tuple[list[int], list[int]]
) -> None:
    metadata = metadata_of(trained("gpt-2"), "gpt-2")
    metadata |= {f"tokenizer.ggml.{name}": value for name, value in settings.items()}
    tokenizer = tokenizers.Tokenizer.from_str(stored(tmp_path, metadata)["tokenizer.json"].decode())
    plain = tokenizer.encode("some text", add_special_tokens=False).ids
    assert tokenizer.encode("some text").ids == [*around[0], *plain, *around[1]]


def test_settings_for_other_libraries(tmp_path: Path) -> None:
    metadata = metadata_of(trained("gpt-2"), "gpt-2")
    metadata["tokenizer.ggml.unknown_token_id"] = 2
    metadata["tokenizer.chat_template"] = "{{ messages }}"
    metadata["tokenizer.ggml.padding_token_id"] = 1
    found = stored(tmp_path, metadata)
    assert json.loads(found["generation_config.json"]) == {
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 1,
    }
    assert json.loads(found["tokenizer_config.json"]) == {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "bos_token": "<|start|>",
        "eos_token": "<|end|>",
        "unk_token": "<unk>",
        "pad_token": "<|end|>",
        "chat_template": "{{ messages }}",
    }


@pytest.mark.parametrize(
    ("metadata", "reason"),
    [
        ({}, "no tokenizer in the file"),
        ({"tokenizer.ggml.model": "bert"}, "its model is 'bert'"),
        ({"tokenizer.ggml.model": 3}, "its model is 3; gpt2"),
        (
            {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": 3},
            "the pre-tokenizer 3 is not one",
        ),
        ({"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "viking"}, "'viking' is not one"),
        ({"tokenizer.ggml.model": "gpt2"}, "it has no merges"),
        (
            {"tokenizer.ggml.model": "llama", "tokenizer.ggml.remove_extra_whitespaces": True},
            "removes white space",
        ),
        (
            {"tokenizer.ggml.model": "llama", "tokenizer.ggml.precompiled_charsmap": [1]},
            "maps characters",
        ),
    ],
)
def test_other_kinds_are_not_read(metadata: dict[str, Any], reason: str) -> None:
    found = unsupported(metadata)
    assert found is not None
    assert reason in found


DAMAGED: dict[str, tuple[dict[str, Any], str]] = {
    "no tokens": ({"tokens": 3}, "tokens is 3; expected an array of at most 1048576 texts"),
    "a token twice": ({"tokens": ["a", "b", "a"]}, "has 'a' twice"),
    "tokens that are no text": (
        {"tokens": Typed(files.ARRAY, [b"a", b"\xff"], files.STRING)},
        "string 1 is not UTF-8",
    ),
    "no types": ({"token_type": 3}, "token_type is 3; expected"),
    "too few types": ({"token_type": [1]}, "array of 1 values; expected"),
    "no merges": ({"merges": 3}, "merges is 3; expected an array of at most"),
    "half a merge": ({"merges": ["a"]}, "merges has 'a', no merge"),
    "a merge with nothing": ({"merges": ["a "]}, "merges has 'a ', no merge"),
    "a merge of unknown tokens": ({"merges": ["a €"]}, "merges has 'a €', no merge"),
    "a merge into an unknown token": ({"merges": ["Ā Ā"]}, "no merge of tokens"),
    "a start beyond the tokens": ({"bos_token_id": 10**6}, "bos_token_id is 1000000; there are"),
    "a start that is no id": ({"bos_token_id": "a"}, "bos_token_id is 'a'; expected a count"),
    "a flag that is none": ({"add_bos_token": 1}, "add_bos_token is 1; expected true or false"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damage_is_refused(tmp_path: Path, case: str) -> None:
    changes, message = DAMAGED[case]
    metadata = metadata_of(trained("gpt-2"), "gpt-2")
    metadata |= {f"tokenizer.ggml.{name}": value for name, value in changes.items()}
    with pytest.raises(InputError, match=message):
        stored(tmp_path, metadata)


def test_vocabularies_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    metadata = metadata_of(trained("gpt-2"), "gpt-2")
    monkeypatch.setattr(gguf_tokenizer, "MOST_TEXTS", len(metadata["tokenizer.ggml.tokens"]))
    stored(tmp_path, metadata)
    metadata["tokenizer.ggml.tokens"] += ["one more"]
    with pytest.raises(InputError, match="tokens is an array of 601 values; expected an array of"):
        stored(tmp_path, metadata)


def test_strings_that_lie_end_in_an_error(tmp_path: Path) -> None:
    array = struct.pack("<IIQ", files.ARRAY, files.STRING, 2**40)
    pairs = files.pair("tokenizer.ggml.model", "gpt2") + files.string("tokenizer.ggml.tokens")
    with pytest.raises(InputError, match="claims"):
        read_gguf(files.write(tmp_path / "a.gguf", pairs + array, keys=2))
