"""Vocabularies with merges; `tests/modbrick/convert/test_tokenizer.py` has their ids."""

from __future__ import annotations

import json

import pytest

from modbrick.data.tokenizers.byte_pairs import read_byte_pairs
from modbrick.data.tokenizers.pretrained import read_pretrained
from modbrick.errors import InputError

VOCABULARY = {"a": 0, "b": 1, "#": 2, "ab": 3, "##": 4, "<|endoftext|>": 5}


def files(merges: str = "a b\n", vocabulary: object = VOCABULARY) -> dict[str, bytes]:
    return {"vocab.json": json.dumps(vocabulary).encode(), "merges.txt": merges.encode()}


def merges(text: str) -> list[list[str]]:
    parts = read_byte_pairs(files(text), "GPT2Tokenizer", prefix=False, where="d")
    return parts["model"]["merges"]


def test_merges_are_lines_behind_a_version() -> None:
    for text in ("#version: 0.2\na b\n# #\n", "a b\n# #", "#version: 0.2\r\na b\r\n# #\r\n"):
        assert merges(text) == [["a", "b"], ["#", "#"]]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (files("a\n"), "d: merges.txt: 'a' is no merge of tokens"),
        (files("a a\n"), "d: merges.txt: 'a a' is no merge of tokens"),
        (files(vocabulary={"a": "b"}), "d: vocab.json: expected an id for each token"),
        (files(vocabulary={}), "d: vocab.json: expected an id for each token"),
        (files() | {"merges.txt": b"\xff"}, "d: merges.txt: not UTF-8"),
    ],
)
def test_damage_is_named(given: dict[str, bytes], message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_byte_pairs(given, "GPT2Tokenizer", prefix=False, where="d")


def test_without_a_class_it_is_taken_for_gpt_2_and_said() -> None:
    found = read_pretrained(files(), "d")
    assert found is not None
    (remark,) = found.remarks
    assert "no tokenizer_class in tokenizer_config.json; its tokenizer is taken for" in remark
    assert found.end == "<|endoftext|>"
