"""Any Hugging Face `tokenizer.json` as a tokenizer."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence

import numpy as np
import tokenizers
from jaxtyping import Int32

from modbrick.data.tokenizers.surroundings import Surroundings, load_json
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
      around_prompts: ids around a prompt; None: the start token before it.
    """

    def __init__(
        self,
        text: str,
        name: str,
        start: int | None,
        end: int | None,
        around_prompts: Surroundings | None = None,
    ):
        self._text = text
        self._tokenizer = parse_tokenizer(text, name)
        ids = self._tokenizer.get_vocab(with_added_tokens=True).values()
        if not ids:
            raise InputError(f"{name}: the tokenizer's vocabulary is empty")
        self.vocabulary = max(ids) + 1
        self.start_of_document = start
        self.end_of_document = end
        self.around_prompts = around_prompts or Surroundings.of_start(start)
        self.stop_tokens: tuple[int, ...] = () if end is None else (end,)
        self.identity = TokenizerIdentity(name, text_sha256(text), self.vocabulary, start, end)

    @functools.cached_property
    def _marking(self) -> tokenizers.Tokenizer:
        """The same tokenizer, to which special tokens in texts are such."""
        tokenizer = parse_tokenizer(self._text, self.identity.name)
        tokenizer.encode_special_tokens = False
        return tokenizer

    def encode(self, text: str, *, special_tokens: bool = False) -> Int32[np.ndarray, " T"]:
        """Returns the ids of `text`, without boundary tokens."""
        return self.encode_batch([text], special_tokens=special_tokens)[0]

    def encode_batch(
        self, texts: Sequence[str], *, special_tokens: bool = False
    ) -> list[Int32[np.ndarray, " T"]]:
        """Returns the ids of each text, without boundary tokens."""
        tokenizer = self._marking if special_tokens else self._tokenizer
        try:
            encodings = tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
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
    tokenizer = load_json(text, name)
    tokenizer.encode_special_tokens = True
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer
