"""Parts of a `tokenizer.json` that several kinds of tokenizers have, as the library writes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def added_token(index: int, content: str, *, special: bool) -> dict[str, Any]:
    """Returns a token that is matched whole, wherever it stands.

    Args:
      index: its id.
      content: its text.
      special: whether decoding may leave it out.
    """
    return {
        "id": index,
        "content": content,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": special,
    }


def byte_pair_model(
    vocabulary: Mapping[str, int], merges: Sequence[Sequence[str]], *, whole_words: bool = False
) -> dict[str, Any]:
    """Returns the model of a byte-level BPE.

    Args:
      vocabulary: id of each token.
      merges: pairs of tokens, the first to be merged first.
      whole_words: whether a word that is a token is not merged.
    """
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": whole_words,
        "vocab": vocabulary,
        "merges": merges,
    }
