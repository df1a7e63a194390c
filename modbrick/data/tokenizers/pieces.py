"""SentencePiece vocabularies of GGUF files as BPE with ranked merges.

SentencePiece's BPE (arXiv 1808.06226) has no list of merges: of all neighbours whose union is a
piece it joins those with the highest score, the leftmost first. The same comes out of a list of all
ways to make a piece of two pieces, by descending score.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from modbrick.errors import InputError

NORMAL, UNKNOWN, USER_DEFINED, BYTE = 1, 2, 4, 6

SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
"""Character that stands for a space in pieces."""

LONGEST_PIECE = 256
"""Characters; the work for a piece grows with the square of its length."""


def sentencepiece_parts(
    pieces: list[str],
    kinds: np.ndarray,
    scores: np.ndarray,
    prefix: bool,
    where: str,
    unknown: str | None = None,
) -> dict[str, Any]:
    """Returns the parts of a `tokenizer.json`.

    Args:
      pieces: by id.
      kinds: type of each piece.
      scores: of each piece.
      prefix: whether a space is put before a text.
      where: begins every message.
      unknown: the piece for what has none; None: the only one whose type says so.

    Raises:
      InputError: pieces that this way of writing them down cannot do justice to.
    """
    candidates = [pieces[index] for index in np.flatnonzero(kinds == UNKNOWN)]
    if unknown is None and len(candidates) != 1:
        raise InputError(
            f"{where}: the vocabulary has {len(candidates)} unknown tokens, expected 1, and "
            "tokenizer.ggml.unknown_token_id names none"
        )
    if not np.isfinite(scores).all():
        raise InputError(f"{where}: tokenizer.ggml.scores has values that are no numbers")
    spaces = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    ahead = [{"type": "Prepend", "prepend": SPACE}] if prefix else []
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefix else []
    back = {"type": "Replace", "pattern": {"String": SPACE}, "content": " "}
    steps = [back, {"type": "ByteFallback"}, {"type": "Fuse"}, *strip]
    return {
        "normalizer": {"type": "Sequence", "normalizers": [*ahead, spaces]},
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": steps},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": candidates[0] if unknown is None else unknown,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": bool((kinds == BYTE).any()),
            "ignore_merges": False,
            "vocab": {piece: index for index, piece in enumerate(pieces)},
            "merges": _merges(pieces, kinds, scores, where),
        },
    }


def _merges(
    pieces: list[str], kinds: np.ndarray, scores: np.ndarray, where: str
) -> list[list[str]]:
    """Lists every way to make a normal piece of two, the highest score first."""
    normal = np.flatnonzero(kinds == NORMAL)
    known = {pieces[index] for index in normal}
    merges: list[list[str]] = []
    for index in normal[np.argsort(-scores[normal], kind="stable")]:
        piece = pieces[index]
        if len(piece) > LONGEST_PIECE:
            raise InputError(
                f"{where}: a piece of {len(piece)} characters, more than {LONGEST_PIECE}"
            )
        halves = ([piece[:cut], piece[cut:]] for cut in range(1, len(piece)))
        merges += [half for half in halves if known.issuperset(half)]
    return merges
