"""Text to token ids and back: bytes, or any Hugging Face `tokenizer.json`.

Every tokenizer here, bytes included, is kept as a `tokenizer.json`, so that a data set or a
checkpoint that carries the file needs nothing else. Text that looks like a special token is encoded
as ordinary text: only the preparation of data puts boundary tokens where documents begin and end.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import tokenizers
from etils import epath
from jaxtyping import Int32

from modbrick.errors import InputError
from modbrick.schema import from_mapping, nearest

END_OF_DOCUMENT = "<|end_of_document|>"
TOKENIZER_FILE = "tokenizer.json"
BYTES = 256

# Tried in this order when the boundary tokens are not named.
_USUAL_ENDS = (
    END_OF_DOCUMENT,
    "<|endoftext|>",
    "<|end_of_text|>",
    "</s>",
    "<eos>",
    "<|eos|>",
    "[SEP]",
)
_USUAL_STARTS = ("<|begin_of_text|>", "<s>", "<bos>", "<|bos|>", "[CLS]")


@dataclass(frozen=True)
class TokenizerIdentity:
    """What makes two tokenizers the same.

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
                    f"({other.name}): {field.name} {_short(ours)} against {_short(theirs)}; use "
                    "a data set prepared with the same tokenizer"
                )


class Tokenizer(Protocol):
    """What modbrick asks of a tokenizer."""

    @property
    def identity(self) -> TokenizerIdentity:
        """What makes it the same as another."""
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

    def encode(self, text: str) -> Int32[np.ndarray, " T"]:
        """Returns the ids of `text`, without boundary tokens."""
        ...

    def encode_batch(self, texts: Sequence[str]) -> list[Int32[np.ndarray, " T"]]:
        """Returns the ids of each text, without boundary tokens."""
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


class ByteTokenizer:
    """UTF-8 bytes: ids 0 to 255 are the bytes, 256 ends (and, as context, begins) a document."""

    vocabulary = BYTES + 1
    end_of_document = BYTES
    start_of_document = BYTES

    @property
    def identity(self) -> TokenizerIdentity:
        """What makes it the same as another."""
        return TokenizerIdentity("bytes", _sha256(self.to_json()), self.vocabulary, BYTES, BYTES)

    def encode(self, text: str) -> Int32[np.ndarray, " T"]:
        """Returns the ids of `text`, without boundary tokens."""
        return np.frombuffer(text.encode("utf-8"), np.uint8).astype(np.int32)

    def encode_batch(self, texts: Sequence[str]) -> list[Int32[np.ndarray, " T"]]:
        """Returns the ids of each text, without boundary tokens."""
        return [self.encode(text) for text in texts]

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text of `ids`; boundary tokens are left out."""
        return bytes(i for i in map(int, ids) if i < BYTES).decode("utf-8", errors="replace")

    def first_token_bytes(self, text: str) -> int:
        """Returns how many UTF-8 bytes of `text` its first token stands for."""
        return min(1, len(text))

    def to_json(self) -> str:
        """Returns a byte-level BPE without merges whose ids are the byte values."""
        alphabet = {symbol: byte for byte, symbol in enumerate(_byte_symbols())}
        level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False}
        return json.dumps(
            {
                "version": "1.0",
                "truncation": None,
                "padding": None,
                "added_tokens": [
                    {
                        "id": BYTES,
                        "content": END_OF_DOCUMENT,
                        "single_word": False,
                        "lstrip": False,
                        "rstrip": False,
                        "normalized": False,
                        "special": True,
                    }
                ],
                "normalizer": None,
                "pre_tokenizer": {**level, "use_regex": False},
                "post_processor": None,
                "decoder": {**level, "use_regex": False},
                "model": {
                    "type": "BPE",
                    "dropout": None,
                    "unk_token": None,
                    "continuing_subword_prefix": None,
                    "end_of_word_suffix": None,
                    "fuse_unk": False,
                    "byte_fallback": False,
                    "ignore_merges": False,
                    "vocab": {**alphabet, END_OF_DOCUMENT: BYTES},
                    "merges": [],
                },
            },
            ensure_ascii=False,
        )


class JsonTokenizer:
    """A Hugging Face `tokenizer.json`.

    Args:
      text: content of the file.
      name: where it came from, for messages.
      start, end: ids of the boundary tokens, or None.
    """

    def __init__(self, text: str, name: str, start: int | None, end: int | None):
        self._text = text
        self._tokenizer = _parse(text, name)
        ids = self._tokenizer.get_vocab(with_added_tokens=True).values()
        if not ids:
            raise InputError(f"{name}: the tokenizer's vocabulary is empty")
        self.vocabulary = max(ids) + 1
        self.start_of_document = start
        self.end_of_document = end
        self.identity = TokenizerIdentity(name, _sha256(text), self.vocabulary, start, end)

    def encode(self, text: str) -> Int32[np.ndarray, " T"]:
        """Returns the ids of `text`, without boundary tokens."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[Int32[np.ndarray, " T"]]:
        """Returns the ids of each text, without boundary tokens."""
        encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
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


def load_tokenizer(
    source: str,
    *,
    start: str | None = "auto",
    end: str | None = "auto",
    identity: Mapping[str, object] | TokenizerIdentity | None = None,
) -> Tokenizer:
    """Loads a tokenizer.

    Args:
      source: `bytes` (or `byte`), a `tokenizer.json`, or a directory that holds one (a data set, a
        checkpoint, a downloaded model).
      start: the token put before documents, by its text; `auto` finds it among the usual names of
        special tokens (where there is none, the end token also begins documents); None: none.
      end: the token that closes documents, likewise.
      identity: what the tokenizer must be (from a data set or a checkpoint). It also fixes the
        boundary tokens. A data set directory's own identity is applied by itself.

    Raises:
      InputError: nothing there, not a tokenizer, no such boundary token, or not the one of
        `identity`.
    """
    if source in ("byte", "bytes"):
        tokenizer: Tokenizer = ByteTokenizer()
        if identity is not None:
            _as_identity(identity).require_same(tokenizer.identity, "the data", "this run")
        return tokenizer
    path = epath.Path(source)
    if path.is_dir():
        manifest = path / "dataset.json"
        if identity is None and manifest.exists():
            identity = json.loads(manifest.read_text())["tokenizer"]
        path = path / TOKENIZER_FILE
    if not path.exists():
        raise InputError(
            f"{source}: no tokenizer there; give 'byte', a tokenizer.json, or a directory "
            "holding one"
        )
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise InputError(f"{path}: not a tokenizer.json (not UTF-8 text)") from None
    return tokenizer_from_json(text, str(path), start=start, end=end, identity=identity)


def save_tokenizer(tokenizer: Tokenizer, directory: str) -> None:
    """Writes `tokenizer.json` into a directory for `load_tokenizer` (given its identity)."""
    path = epath.Path(directory) / TOKENIZER_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(tokenizer.to_json())


def tokenizer_from_json(
    text: str,
    name: str,
    *,
    start: str | None = "auto",
    end: str | None = "auto",
    identity: Mapping[str, object] | TokenizerIdentity | None = None,
) -> Tokenizer:
    """Builds a tokenizer from the text of a `tokenizer.json`; arguments as of `load_tokenizer`."""
    wanted = None if identity is None else _as_identity(identity)
    if wanted is not None and _sha256(text) != wanted.sha256:
        raise InputError(
            f"{name}: its hash is {_short(_sha256(text))}, but {_short(wanted.sha256)} "
            f"({wanted.name}) is needed; put back the file that the data was prepared with, or "
            "prepare the data again"
        )
    bytewise = ByteTokenizer()
    if text == bytewise.to_json():
        return bytewise
    if wanted is not None:
        return JsonTokenizer(text, wanted.name, wanted.start_of_document, wanted.end_of_document)
    parsed = _parse(text, name)
    vocabulary = parsed.get_vocab(with_added_tokens=True)
    special = {t.content for t in parsed.get_added_tokens_decoder().values() if t.special}
    end_id = _boundary(end, _USUAL_ENDS, vocabulary, special, name)
    start_id = _boundary(start, _USUAL_STARTS, vocabulary, special, name)
    if start_id is None and start == "auto":
        start_id = end_id
    return JsonTokenizer(text, name, start_id, end_id)


def train_tokenizer(texts: Iterator[str], vocabulary: int) -> Tokenizer:
    """Trains a byte-level BPE of `vocabulary` tokens, the end-of-document token (id 0) included.

    The outcome depends on the texts and their order only. A vocabulary may come out smaller when
    the texts hold too little to merge.

    Raises:
      InputError: a vocabulary that has no room for the bytes.
    """
    if vocabulary < BYTES + 1:
        raise InputError(
            f"a byte-level tokenizer needs a vocabulary of at least {BYTES + 1}, got {vocabulary}"
        )
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END_OF_DOCUMENT],
        initial_alphabet=sorted(_byte_symbols()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer_from_json(tokenizer.to_str(), "trained byte-level BPE")


def _parse(text: str, name: str) -> tokenizers.Tokenizer:
    try:
        tokenizer = tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # noqa: BLE001 - the library raises bare Exception for every malformed file
        raise InputError(f"{name}: not a tokenizer.json ({str(error).splitlines()[0]})") from None
    tokenizer.encode_special_tokens = True
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _boundary(
    wanted: str | None,
    usual: tuple[str, ...],
    vocabulary: Mapping[str, int],
    special: set[str],
    name: str,
) -> int | None:
    if wanted is None:
        return None
    if wanted == "auto":
        return next((vocabulary[token] for token in usual if token in special), None)
    if wanted not in vocabulary:
        raise InputError(
            f"{name}: has no token {wanted!r} to bound documents; {nearest(wanted, special)}"
        )
    return vocabulary[wanted]


def _as_identity(identity: Mapping[str, object] | TokenizerIdentity) -> TokenizerIdentity:
    return from_mapping(TokenizerIdentity, identity, "tokenizer")


def _byte_symbols() -> list[str]:
    """Returns the printable character that byte-level BPE (GPT-2) writes for each byte."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    symbols = {byte: chr(byte) for byte in printable}
    spare = iter(range(256, 512))
    return [symbols[byte] if byte in symbols else chr(next(spare)) for byte in range(BYTES)]


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def _short(value: object) -> str:
    return value[:12] if isinstance(value, str) else str(value)
