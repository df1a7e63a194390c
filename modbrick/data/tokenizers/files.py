"""Tokenizers from files, from training, and back to files."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping

import tokenizers
from absl import logging
from etils import epath

from modbrick.data.tokenizers.byte import ByteTokenizer, byte_symbols
from modbrick.data.tokenizers.json_file import JsonTokenizer, parse_tokenizer
from modbrick.data.tokenizers.pretrained import read_directory, read_pretrained
from modbrick.data.tokenizers.surroundings import Surroundings, with_surroundings
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

# Tried in this order when the end token is not named.
_USUAL_ENDS = (
    END_OF_DOCUMENT,
    "<|endoftext|>",
    "<|end_of_text|>",
    "</s>",
    "<eos>",
    "<|eos|>",
    "[SEP]",
)


def load_tokenizer(
    source: str,
    *,
    start: str | None = "auto",
    end: str | None = "auto",
    identity: Mapping[str, object] | TokenizerIdentity | None = None,
    own_prompts: bool = False,
) -> Tokenizer:
    """Loads a tokenizer.

    Args:
      source: `bytes` (or `byte`), a `tokenizer.json`, or a directory that holds one (a data set, a
        checkpoint), or a tokenizer in other files (a downloaded model, see `pretrained.py`).
      start: the token put before documents, by its text; `auto`: the one that the tokenizer itself
        puts before a text, if it puts one (those trained here have their end token there); None:
        none.
      end: the token that closes documents, by its text; `auto`: the one that the files name, or a
        special token of a usual name; None: none.
      identity: what the tokenizer must be (from a data set or a checkpoint). It also fixes the
        boundary tokens. A data set directory's own identity is applied by itself.
      own_prompts: prompts get what the tokenizer itself puts around a text, be it more than a start
        token, as the library of a model that was not trained here has it.

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
        found = None if identity else read_pretrained(read_directory(path), str(path))
        if found is not None:
            for remark in found.remarks:
                logging.warning("%s", remark)
            end = found.end if end == "auto" else end
            return tokenizer_from_json(found.text, f"{path}/{found.name}", start=start, end=end)
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
    return tokenizer_from_json(
        text, str(path), start=start, end=end, identity=identity, own_prompts=own_prompts
    )


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
    own_prompts: bool = False,
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
    if text == bytewise.to_json() or text == with_surroundings(
        bytewise.to_json(), bytewise.around_prompts, name
    ):  # the latter is what an export writes
        return bytewise
    if wanted is not None and not own_prompts:
        return JsonTokenizer(text, wanted.name, wanted.start_of_document, wanted.end_of_document)
    parsed = parse_tokenizer(text, name)
    around = Surroundings.of_post_processor(parsed, name) if own_prompts else None
    if wanted is not None:
        bounds = wanted.start_of_document, wanted.end_of_document
        return JsonTokenizer(text, wanted.name, *bounds, around)
    end_id = _end(end, parsed, name)
    return JsonTokenizer(text, name, _start(start, parsed, name, own_prompts), end_id, around)


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


def _start(
    wanted: str | None, tokenizer: tokenizers.Tokenizer, name: str, own_prompts: bool
) -> int | None:
    """Returns the token before documents; of several that the tokenizer puts, none."""
    if wanted != "auto":
        return _named(wanted, tokenizer, name)
    if tokenizer.post_processor is None and END_OF_DOCUMENT in (special := _special(tokenizer)):
        return special[END_OF_DOCUMENT]  # of those trained here
    before = Surroundings.of_post_processor(tokenizer, name).before
    if len(before) > 1 and not own_prompts:
        texts = ", ".join(str(tokenizer.id_to_token(number)) for number in before)
        raise InputError(
            f"{name}: it puts {len(before)} tokens before a text ({texts}): name the one that is "
            "to begin documents, or none"
        )
    return before[0] if len(before) == 1 else None


def _end(wanted: str | None, tokenizer: tokenizers.Tokenizer, name: str) -> int | None:
    if wanted != "auto":
        return _named(wanted, tokenizer, name)
    special = _special(tokenizer)
    return next((special[token] for token in _USUAL_ENDS if token in special), None)


def _special(tokenizer: tokenizers.Tokenizer) -> dict[str, int]:
    added = tokenizer.get_added_tokens_decoder().items()
    return {token.content: number for number, token in added if token.special}


def _named(wanted: str | None, tokenizer: tokenizers.Tokenizer, name: str) -> int | None:
    if wanted is None:
        return None
    number = tokenizer.token_to_id(wanted)
    if number is None:
        remark = nearest(wanted, _special(tokenizer))
        raise InputError(f"{name}: has no token {wanted!r} to bound documents; {remark}")
    return number


def _as_identity(identity: Mapping[str, object] | TokenizerIdentity) -> TokenizerIdentity:
    return from_mapping(TokenizerIdentity, identity, "tokenizer")
