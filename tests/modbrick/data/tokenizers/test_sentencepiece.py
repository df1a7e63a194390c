"""Models of SentencePiece, read without its library; `test_tokenizer.py` has their ids."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from modbrick.data.tokenizers.sentencepiece import read_sentencepiece
from modbrick.data.tokenizers.tokenizer import UnreadTokenizerError

SITUATIONS = Path(__file__).parents[3] / "fixtures/tokenizers/situations.json"


def model(situation: str) -> bytes:
    files = json.loads(SITUATIONS.read_text(encoding="utf-8"))[situation]["files"]
    return base64.b64decode(files["tokenizer.model"]["base64"])


def field(number: int, value: int | bytes) -> bytes:
    """A field of a message; small numbers and short texts only."""
    if isinstance(value, int):
        head = number << 3
        coded = bytes([value]) if value < 128 else b"\xff" * 9 + b"\x01"
    else:
        head, coded = number << 3 | 2, bytes([len(value)]) + value
    return (bytes([head]) if head < 128 else bytes([head & 127 | 128, head >> 7])) + coded


def tiny(trainer: bytes = field(3, 2), normalizer: bytes = b"") -> bytes:
    pieces = [field(1, b"<unk>") + field(3, 2), field(1, b"a"), field(1, b"<x>") + field(3, 4)]
    written = b"".join(field(1, piece) for piece in pieces)
    return written + field(2, trainer) + field(3, normalizer)


def test_pieces_and_boundaries() -> None:
    found = read_sentencepiece(model("pieces"), "m")
    assert (found.start, found.end) == ("<s>", "</s>")
    assert len(found.parts["model"]["vocab"]) == 300
    assert [(token["content"], token["special"]) for token in found.parts["added_tokens"]] == [
        ("<unk>", True),
        ("<s>", True),
        ("</s>", True),
    ]
    assert found.parts["model"]["byte_fallback"]


def test_what_the_model_says() -> None:
    named = field(46, b"<go>") + field(42, 1 << 63)  # -1: there is no end
    found = read_sentencepiece(tiny(field(3, 2) + named), "m")
    assert (found.start, found.end) == ("<go>", None)
    assert [token["special"] for token in found.parts["added_tokens"]] == [True, False]
    steps = found.parts["normalizer"]["normalizers"]
    assert [step["type"] for step in steps] == ["Replace", "Replace", "Prepend", "Replace"]
    kept = read_sentencepiece(tiny(normalizer=field(4, 0) + field(3, 0)), "m").parts["normalizer"]
    assert [step["type"] for step in kept["normalizers"]] == ["Replace"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "m is no SentencePiece model"),
        (b"IQ== 0\n", "m is no SentencePiece model"),
        (b"\x0b\x00", "m is no SentencePiece model"),
        (tiny(field(3, 2) + field(46, b"\xff")), "m is no SentencePiece model"),
        (tiny(field(3, 2) + field(46, 7)), "m is no SentencePiece model"),
        (tiny(field(3, 2) + field(41, b"x")), "m is no SentencePiece model"),
        (tiny(normalizer=field(2, 7)), "m is no SentencePiece model"),
        (tiny(field(3, 1)), "of the kind unigram; bpe is read"),
        (tiny(b""), "of the kind unigram"),
        (tiny(field(3, 4)), "of the kind char"),
        (tiny(field(3, 2) + field(24, 1)), "spaces behind words"),
        (tiny(normalizer=field(5, 0)), "spaces behind words, or as they are"),
    ],
)
def test_what_is_not_read(data: bytes, message: str) -> None:
    with pytest.raises(UnreadTokenizerError, match=message):
        read_sentencepiece(data, "m")


def test_a_cut_model_is_no_model() -> None:
    whole: Any = model("pieces")
    for length in range(1, len(whole), 97):
        try:
            read_sentencepiece(whole[:length], "m")
        except UnreadTokenizerError:
            continue
        raise AssertionError(f"{length} of {len(whole)} bytes were taken for a model")
