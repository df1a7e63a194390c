"""Any Hugging Face `tokenizer.json` as a tokenizer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import tokenizers
from jaxtyping import Int32

from modbrick.data.tokenizers.tokenizer import (
    TokenizerIdentity,
    not_unicode,
    text_sha256,
)
from modbrick.errors import InputError


class JsonTokenizer:
    """A Hugging Face `tokenizer.json`.

    Args:
      text: content of the file.
      name: where it came from, for messages.
      start, end: ids of the boundary tokens, or None.
    """

    def __init__(self, text: str, name: str, start: int | None, end: int | None):
        self._text = text
        self._tokenizer = parse_tokenizer(text, name)
        ids = self._tokenizer.get_vocab(with_added_tokens=True).values()
        if not ids:
            raise InputError(f"{name}: the tokenizer's vocabulary is empty")
        self.vocabulary = max(ids) + 1
        self.start_of_document = start
        self.end_of_document = end
        self.identity = TokenizerIdentity(name, text_sha256(text), self.vocabulary, start, end)

    def encode(self, text: str) -> Int32[np.ndarray, " T"]:
        """Returns the ids of `text`, without boundary tokens."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[Int32[np.ndarray, " T"]]:
        """Returns the ids of each text, without boundary tokens."""
        try:
            encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        except TypeError:  # so the library says it
            raise not_unicode(texts) from None
        return [np.asarray(encoding.ids, np.int32) for encoding in encodings]

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text of `ids`; boundary tokens are left out."""
        return self._tokenizer.decode([int(i) for i in ids], skip_special_tokens=True)

    def first_token_bytes(self, text: str) -> int:
        """Returns how many UTF-8 bytes of `text` its first token stands for."""
        head = text[:256]  # a token is never longer in any vocabulary worth its name
        offsets = self._tokenizer.encode(head, add_special_tokens=False).offsets
        return len(head[: offsets[0][1]].encode("utf-8")) if offsets else 0

    def to_json(self) -> str:
        """Returns the text of the file."""
        return self._text


def parse_tokenizer(text: str, name: str) -> tokenizers.Tokenizer:
    """Parses a `tokenizer.json`; special tokens in texts will be plain text to it."""
    try:
        tokenizer = tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # noqa: BLE001 - the library raises bare Exception for every malformed file
        raise InputError(f"{name}: not a tokenizer.json ({str(error).splitlines()[0]})") from None
    tokenizer.encode_special_tokens = True
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer
