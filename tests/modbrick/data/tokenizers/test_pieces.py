"""SentencePiece vocabularies: the ids that SentencePiece itself finds."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers.models import BPE, Unigram

from modbrick.convert.gguf.header import read_gguf
from modbrick.convert.gguf.tokenizer import tokenizer_files, unsupported
from modbrick.data import Tokenizer
from modbrick.data.tokenizers.files import tokenizer_from_json
from modbrick.data.tokenizers.pieces import LONGEST_PIECE, SPACE, sentencepiece_parts
from modbrick.errors import InputError

FIXTURES = Path(__file__).parents[3] / "fixtures" / "gguf"


def tokenizer(**changes: Any) -> Tokenizer:
    metadata = dict(read_gguf(FIXTURES / "sentencepiece.gguf").metadata)
    metadata |= {f"tokenizer.ggml.{name}": value for name, value in changes.items()}
    assert unsupported(metadata) is None
    return tokenizer_from_json(tokenizer_files(metadata, "file")["tokenizer.json"].decode(), "file")


def test_ids_are_those_of_sentencepiece() -> None:
    found = tokenizer()
    cases = json.loads((FIXTURES / "sentencepiece.json").read_text(encoding="utf-8"))
    assert len(cases) == 10
    for text, ids in cases:
        assert found.encode(text).tolist() == ids, text[:50]
        assert found.decode(ids) == text.replace(SPACE, " "), "both are a space to SentencePiece"


def test_a_tokenizer_of_the_library_needs_the_merges() -> None:
    """GGUF files have no merges, and without them no model of the library finds the same ids."""
    metadata: Mapping[str, Any] = read_gguf(FIXTURES / "sentencepiece.gguf").metadata
    pieces, scores = (list(metadata[f"tokenizer.ggml.{name}"]) for name in ("tokens", "scores"))
    text, ids = json.loads((FIXTURES / "sentencepiece.json").read_text(encoding="utf-8"))[0]
    spaced = SPACE + text.replace(" ", SPACE)
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    by_scores = Unigram(list(zip(pieces, map(float, scores), strict=True)), 0, True)
    without_merges = BPE(vocabulary, [], unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    for model in (by_scores, without_merges):
        assert [token.id for token in model.tokenize(spaced)] != ids
    merges = sentencepiece_parts(
        pieces, np.asarray(metadata["tokenizer.ggml.token_type"]), np.asarray(scores), True, "file"
    )["model"]["merges"]
    pairs = [(left, right) for left, right in merges]
    merged = BPE(vocabulary, pairs, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    assert [token.id for token in merged.tokenize(spaced)] == ids


def test_boundaries_are_found() -> None:
    found = tokenizer()
    assert (found.start_of_document, found.end_of_document) == (1, 2)
    assert found.vocabulary == 700


def test_without_a_space_ahead() -> None:
    plain = tokenizer(add_space_prefix=False)
    assert plain.encode(" a text").tolist() == tokenizer().encode("a text").tolist()
    assert plain.decode(plain.encode(" a text")) == " a text"


PIECES = ["<unk>", "<s>", "a", "b", "ab", "aba", "ba"]
KINDS = [2, 3, 1, 1, 1, 1, 1]
SCORES = [0.0, 0.0, -9.0, -8.0, -3.0, -1.0, -2.0]


def parts(
    change: Callable[[list[str], list[int], list[float]], object], unknown: str | None = None
) -> dict[str, Any]:
    pieces, kinds, scores = list(PIECES), list(KINDS), list(SCORES)
    change(pieces, kinds, scores)
    return sentencepiece_parts(pieces, np.array(kinds), np.array(scores), True, "file", unknown)


def test_merges_are_all_the_ways_by_falling_score() -> None:
    model = parts(lambda p, k, s: None)["model"]
    assert model["merges"] == [["a", "ba"], ["ab", "a"], ["b", "a"], ["a", "b"]]
    assert model["byte_fallback"] is False
    assert model["unk_token"] == "<unk>"


def test_only_normal_pieces_are_merged() -> None:
    unused = parts(lambda p, k, s: k.__setitem__(4, 5))["model"]
    assert unused["merges"] == [["a", "ba"], ["b", "a"]]


def test_the_unknown_piece_that_is_named() -> None:
    """Phi-3's padding has the type of unknown tokens, and its unknown token has another."""
    padding = parts(lambda p, k, s: k.__setitem__(slice(2), [3, 2]), "<unk>")
    assert padding["model"]["unk_token"] == "<unk>"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p, k, s: k.__setitem__(0, 1), "0 unknown tokens, expected 1"),
        (lambda p, k, s: k.__setitem__(1, 2), "2 unknown tokens, expected 1"),
        (lambda p, k, s: s.__setitem__(3, np.nan), "no numbers"),
        (lambda p, k, s: p.__setitem__(3, "b" * (LONGEST_PIECE + 1)), "a piece of 257 characters"),
    ],
)
def test_what_is_refused(change: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parts(change)
