"""The tokenizer of a pretrained model, from whichever files it came in, as one `tokenizer.json`.

That is `tokenizer.json` itself, a SentencePiece model (`tokenizer.model`), or a vocabulary and its
merges; and files that add tokens. The ids of a text are those of the transformers library.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass

import tokenizers
from etils import epath

from modbrick.data.tokenizers.byte_pairs import BOUNDARIES, MERGES, VOCABULARY, read_byte_pairs
from modbrick.data.tokenizers.pieces import SPACE
from modbrick.data.tokenizers.sentencepiece import read_sentencepiece
from modbrick.data.tokenizers.settings import (
    ADDED,
    CONFIG,
    SPECIAL,
    TokenizerSettings,
    read_settings,
)
from modbrick.data.tokenizers.surroundings import Surroundings, load_json, with_surroundings
from modbrick.data.tokenizers.tokenizer import TOKENIZER_FILE
from modbrick.errors import InputError

PIECES = "tokenizer.model"

FILES = (TOKENIZER_FILE, CONFIG, SPECIAL, ADDED, PIECES, VOCABULARY, MERGES)
"""Files that are read, where they are there."""

_USUAL = "GPT2Tokenizer"


@dataclass(frozen=True)
class Pretrained:
    """A tokenizer that came with a model.

    Attributes:
      text: of its `tokenizer.json`.
      name: of the file that it came in.
      end: the token that ends a text, by its text; `auto`: not said.
      remarks: in a line each, what may surprise whoever uses it.
    """

    text: str
    name: str
    end: str = "auto"
    remarks: tuple[str, ...] = ()


def read_directory(directory: epath.Path) -> dict[str, bytes]:
    """Returns the content of those of `FILES` that a directory holds, by name."""
    return {name: (directory / name).read_bytes() for name in FILES if (directory / name).exists()}


def read_pretrained(files: Mapping[str, bytes], where: str) -> Pretrained | None:
    """Returns the tokenizer in the files of a directory, or None if there is none.

    Args:
      files: content by name; others may be among them.
      where: the directory, for messages.

    Raises:
      InputError: a file is damaged.
      UnreadTokenizerError: there is one, of a kind that is not read.
    """
    if TOKENIZER_FILE in files:
        try:
            # As a file is read: the text is hashed, and its lines end with it.
            text = files[TOKENIZER_FILE].decode("utf-8").replace("\r\n", "\n").replace("\r", "\n")
        except UnicodeDecodeError:
            name = f"{where}/{TOKENIZER_FILE}"
            raise InputError(f"{name}: not a tokenizer.json (not UTF-8 text)") from None
        return _completed(text, TOKENIZER_FILE, read_settings(files, where), where)
    if PIECES in files:
        settings = read_settings(files, where)
        model = read_sentencepiece(files[PIECES], f"{where}/{PIECES}")
        usual = {"bos_token": model.start, "eos_token": model.end}
        parts = model.parts | (_as_llama(settings) if settings.kind == "LlamaTokenizer" else {})
        return _assembled(parts, PIECES, settings, usual, where)
    if VOCABULARY in files and MERGES in files:
        settings = read_settings(files, where)
        kind = settings.kind or _USUAL
        parts = read_byte_pairs(files, kind, prefix=bool(settings.prefix), where=where)
        start, end = BOUNDARIES[kind]
        usual = {"bos_token": start, "eos_token": end}
        found = _assembled(parts, VOCABULARY, settings, usual, where)
        if settings.kind is None:
            remark = f"{where}: no tokenizer_class in {CONFIG}; its tokenizer is taken for a {kind}"
            found = dataclasses.replace(found, remarks=(*found.remarks, remark))
        return found
    return None


def _as_llama(settings: TokenizerSettings) -> dict[str, object]:
    """Returns the parts in which the library's class for Llama departs from SentencePiece.

    It puts no second space before a text that begins with one.
    """
    prefix = settings.prefix is not False
    where = ("always" if settings.legacy else "first") if prefix else "never"
    space = {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": where, "split": False}
    return {"normalizer": None, "pre_tokenizer": space}


def _assembled(
    parts: Mapping[str, object],
    name: str,
    settings: TokenizerSettings,
    usual: Mapping[str, str | None],
    where: str,
) -> Pretrained:
    """Returns parts with added tokens, and the start and end token that the settings ask for."""
    vocabulary: Mapping[str, int] = parts["model"]["vocab"]  # type: ignore[index]
    there = {role: token for role, token in usual.items() if token in vocabulary}
    named = {**{role: token for role, token in there.items() if token}, **settings.named}
    special = [tokenizers.AddedToken(token, special=True) for token in named.values()]
    settings = dataclasses.replace(settings, named=named, added=(*settings.added, *special))
    empty = {"version": "1.0", "truncation": None, "padding": None, "post_processor": None}
    found = _completed(json.dumps({**empty, **parts}), name, settings, where)
    put = {"bos_token": settings.add_start, "eos_token": settings.add_end}
    ids = load_json(found.text, f"{where}/{name}").get_vocab(with_added_tokens=True)
    before, behind = (
        (ids[named[role]],) if wanted and role in named else () for role, wanted in put.items()
    )
    around = Surroundings(before, behind)
    text = with_surroundings(found.text, around, f"{where}/{name}")
    return dataclasses.replace(found, text=text)


def _completed(text: str, name: str, settings: TokenizerSettings, where: str) -> Pretrained:
    """Returns a `tokenizer.json` with the tokens that only the files beside it name."""
    tokenizer = load_json(text, f"{where}/{name}")
    have = {token.content: token for token in tokenizer.get_added_tokens_decoder().values()}
    added: dict[str, tokenizers.AddedToken] = {}
    for token in settings.added:
        there = have.get(token.content)
        # With an id it may say more than the file, such as to take the white space before it.
        if there is None or (token.content in settings.ids and repr(there) != repr(token)):
            added.setdefault(token.content, token)
    remarks = []
    if added:
        tokenizer.add_tokens([*added.values()])
        text = tokenizer.to_str()
        for content, wanted in settings.ids.items():
            found = tokenizer.token_to_id(content)
            if content in added and found != wanted:
                remarks.append(
                    f"{where}: the added token {content!r} has the id {found} to its library, "
                    f"{wanted} in its file"
                )
    return Pretrained(text, name, settings.named.get("eos_token", "auto"), tuple(remarks))
