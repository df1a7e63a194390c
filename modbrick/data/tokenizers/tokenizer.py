"""Text to token ids and back: bytes, or any Hugging Face `tokenizer.json`.

Every tokenizer here, bytes included, is kept as a `tokenizer.json`, so that a data set or a
checkpoint that carries the file needs nothing else. Text that looks like a special token is encoded
as ordinary text, unless a caller asks for special tokens: otherwise only the preparation of data
and of prompts puts boundary tokens where documents begin and end.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from jaxtyping import Int32

from modbrick.data.tokenizers.surroundings import Surroundings
from modbrick.errors import InputError

END_OF_DOCUMENT = "<|end_of_document|>"
TOKENIZER_FILE = "tokenizer.json"
BYTES = 256


class UnreadTokenizerError(InputError):
    """A tokenizer of a kind that is not read; weights that it came with are of use without it."""


@dataclass(frozen=True)
class TokenizerIdentity:
    """Identity of a tokenizer: two with equal ones encode alike.

    Attributes:
      name: `bytes`, or where the file came from (for people only; not compared).
      sha256: of the `tokenizer.json` text.
      vocabulary: largest token id plus one.
      start_of_document: id put before a document (context only, never a target), or None.
      end_of_document: id that closes a document, or None.
    """

    name: str
    sha256: str
    vocabulary: int
    start_of_document: int | None
    end_of_document: int | None

    def require_same(self, other: TokenizerIdentity, mine: str, others: str) -> None:
        """Raises `InputError` unless both encode alike; `mine` and `others` say whose they are."""
        for field in dataclasses.fields(self):
            ours, theirs = getattr(self, field.name), getattr(other, field.name)
            if field.name != "name" and ours != theirs:
                raise InputError(
                    f"the tokenizer of {mine} ({self.name}) is not the one of {others} "
                    f"({other.name}): {field.name} {short(ours)} against {short(theirs)}; use "
                    "a data set prepared with the same tokenizer"
                )


class Tokenizer(Protocol):
    """Interface of tokenizers.

    Attributes:
      stop_tokens: ids that end a generated text; as a rule, the end of a document.
    """

    stop_tokens: tuple[int, ...]

    @property
    def identity(self) -> TokenizerIdentity:
        """Identity of the tokenizer, by which it is compared."""
        ...

    @property
    def vocabulary(self) -> int:
        """Largest token id plus one."""
        ...

    @property
    def end_of_document(self) -> int | None:
        """Id that closes a document, or None."""
        ...

    @property
    def start_of_document(self) -> int | None:
        """Id put before a document, or None."""
        ...

    @property
    def around_prompts(self) -> Surroundings:
        """Ids before and behind the text of a prompt; before it, as a rule, the start token."""
        ...

    def encode(self, text: str, *, special_tokens: bool = False) -> Int32[np.ndarray, " T"]:
        """Returns the ids of `text`, without boundary tokens.

        Args:
          text: any.
          special_tokens: the names of special tokens in the text are these tokens, not text.

        Raises:
          InputError: it is not Unicode text.
        """
        ...

    def encode_batch(
        self, texts: Sequence[str], *, special_tokens: bool = False
    ) -> list[Int32[np.ndarray, " T"]]:
        """Returns the ids of each text, as `encode` does."""
        ...

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text of `ids`; boundary tokens are left out."""
        ...

    def first_token_bytes(self, text: str) -> int:
        """Returns how many UTF-8 bytes of `text` its first token stands for."""
        ...

    def to_json(self) -> str:
        """Returns the text of the `tokenizer.json` that `load_tokenizer` reads back."""
        ...


def text_sha256(text: str) -> str:
    """Returns the hash of a text, in hexadecimal."""
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def not_unicode(texts: Sequence[str]) -> InputError:
    """Returns the error for texts of which one cannot be written as UTF-8.

    Such a text comes from a command line with bytes that are not UTF-8, or from half a pair of
    surrogates in JSON.
    """
    whole = next(text for text in texts if text.encode("utf-8", "ignore").decode() != text)
    return InputError(f"{whole[:40]!a}: not Unicode text; write it as UTF-8")


def short(value: object) -> str:
    """Returns a value for a message: of a hash, the first digits."""
    return value[:12] if isinstance(value, str) else str(value)
