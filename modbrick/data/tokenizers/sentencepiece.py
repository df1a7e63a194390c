"""SentencePiece models (`tokenizer.model`) as parts of a `tokenizer.json`.

Fields as in github.com/google/sentencepiece, src/sentencepiece_model.proto. The file is a protocol
buffer of few fields, read here without that library.
"""

from __future__ import annotations

import base64
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from modbrick.data.tokenizers.parts import added_token
from modbrick.data.tokenizers.pieces import UNKNOWN, USER_DEFINED, sentencepiece_parts
from modbrick.data.tokenizers.tokenizer import UnreadTokenizerError

CONTROL = 3
BPE = 2
KINDS = {1: "unigram", 2: "bpe", 3: "word", 4: "char"}
_PIECES, _TRAINER, _NORMALIZER = 1, 2, 3
_VARINT, _FIXED_64, _BYTES, _FIXED_32 = 0, 1, 2, 5


@dataclass(frozen=True)
class SentencePieceModel:
    """A model of SentencePiece as parts of a `tokenizer.json`.

    Attributes:
      parts: of the file, `added_tokens` among them.
      start, end: texts of these tokens, of those that there are.
    """

    parts: dict[str, Any]
    start: str | None
    end: str | None


def read_sentencepiece(data: bytes, where: str) -> SentencePieceModel:
    """Returns a model of byte pairs; its ids are those that SentencePiece finds.

    Args:
      data: of the file.
      where: begins every message.

    Raises:
      InputError: it is damaged.
      UnreadTokenizerError: it is of another kind, or does what cannot be written down.
    """
    try:
        fields = list(_fields(data))
        trainer = dict(_fields(next((v for n, v in fields if n == _TRAINER), b"")))
        normalizer = dict(_fields(next((v for n, v in fields if n == _NORMALIZER), b"")))
        entries = [dict(_fields(value)) for number, value in fields if number == _PIECES]
        pieces = [entry[1].decode("utf-8") for entry in entries]
        scores = np.asarray([struct.unpack("<f", entry.get(2, bytes(4)))[0] for entry in entries])
        kinds = np.asarray([entry.get(3, 1) for entry in entries])
        cleaning = _cleaning(normalizer)
        start = _boundary(trainer, 41, 1, 46, "<s>")
        end = _boundary(trainer, 42, 2, 47, "</s>")
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, struct.error):
        raise UnreadTokenizerError(f"{where} is no SentencePiece model") from None
    if not pieces:
        raise UnreadTokenizerError(f"{where} is no SentencePiece model")
    if (kind := trainer.get(3, 1)) != BPE:
        raise UnreadTokenizerError(
            f"{where} is a SentencePiece model of the kind {KINDS.get(kind, kind)}; bpe is read"
        )
    if trainer.get(24) or not normalizer.get(5, 1):
        raise UnreadTokenizerError(f"{where} has spaces behind words, or as they are")
    parts = sentencepiece_parts(pieces, kinds, scores, bool(normalizer.get(3, 1)), where)
    parts["normalizer"]["normalizers"][:0] = cleaning
    parts["added_tokens"] = [
        added_token(index, pieces[index], special=int(kinds[index]) != USER_DEFINED)
        for index in np.flatnonzero(np.isin(kinds, (UNKNOWN, CONTROL, USER_DEFINED))).tolist()
    ]
    return SentencePieceModel(parts, start, end)


def _cleaning(normalizer: dict[int, Any]) -> list[dict[str, Any]]:
    """Returns the steps before spaces become visible: a map of characters, fewer spaces."""
    steps: list[dict[str, Any]] = []
    if characters := normalizer.get(2, b""):
        text = base64.b64encode(characters).decode("ascii")
        steps.append({"type": "Precompiled", "precompiled_charsmap": text})
    if normalizer.get(4, 1):
        for pattern, content in ((r"\A +| +\z", ""), (" {2,}", " ")):
            steps.append({"type": "Replace", "pattern": {"Regex": pattern}, "content": content})
    return steps


def _boundary(
    trainer: dict[int, Any], id_field: int, usual: int, name_field: int, name: str
) -> str | None:
    """Returns the text of a token, unless its id says that there is none (-1)."""
    if trainer.get(id_field, usual) >= 1 << 31:
        return None
    return trainer.get(name_field, name.encode()).decode("utf-8")


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """Yields numbers and values of the fields of a message.

    Raises:
      ValueError: it is none.
    """
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, wire = key >> 3, key & 7
        if wire == _VARINT:
            value, at = _varint(data, at)
            yield number, value
            continue
        if wire == _BYTES:
            size, at = _varint(data, at)
        elif wire in (_FIXED_32, _FIXED_64):
            size = 4 if wire == _FIXED_32 else 8
        else:
            raise ValueError(f"wire type {wire}")
        if at + size > len(data):
            raise ValueError("the end is missing")
        yield number, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """Returns a number of seven bits a byte, the lowest first, and where it ends."""
    value = 0
    for shift in range(0, 70, 7):
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError("a number of more than ten bytes")
