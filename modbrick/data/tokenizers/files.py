"""Tokenizers from files, from training, and back to files."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping

import tokenizers
from etils import epath

from modbrick.data.tokenizers.byte import ByteTokenizer, byte_symbols
from modbrick.data.tokenizers.json_file import JsonTokenizer, parse_tokenizer
from modbrick.data.tokenizers.tokenizer import (
    BYTES,
    END_OF_DOCUMENT,
    TOKENIZER_FILE,
    Tokenizer,
    TokenizerIdentity,
    short,
    text_sha256,
)
from modbrick.errors import InputError
from modbrick.schema import from_mapping, nearest

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
    path = epath.Path(os.path.expanduser(source))
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
    if wanted is not None and text_sha256(text) != wanted.sha256:
        raise InputError(
            f"{name}: its hash is {short(text_sha256(text))}, but {short(wanted.sha256)} "
            f"({wanted.name}) is needed; put back the file that the data was prepared with, or "
            "prepare the data again"
        )
    bytewise = ByteTokenizer()
    if text == bytewise.to_json():
        return bytewise
    if wanted is not None:
        return JsonTokenizer(text, wanted.name, wanted.start_of_document, wanted.end_of_document)
    parsed = parse_tokenizer(text, name)
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
        initial_alphabet=sorted(byte_symbols()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer_from_json(tokenizer.to_str(), "trained byte-level BPE")


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
