"""What the files beside a tokenizer's vocabulary say about its special and added tokens.

Names and precedence as the transformers library reads them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import tokenizers

from modbrick.errors import InputError
from modbrick.formats.strict_json import parse_object

CONFIG = "tokenizer_config.json"
SPECIAL = "special_tokens_map.json"
ADDED = "added_tokens.json"

NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
"""Special tokens that have a role, in the order in which they are added."""

_EXTRA = ("extra_special_tokens", "additional_special_tokens")
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


@dataclass(frozen=True)
class TokenizerSettings:
    """Settings of a tokenizer.

    Attributes:
      kind: its class in the library, without `Fast`; None: not said.
      named: texts of special tokens by role (`bos_token`), of those that there are.
      added: tokens that must be matched whole, in the order in which they are added.
      ids: which ids the files give some of them.
      add_start, add_end: whether the start and end token are put around texts, where no
        post-processor says it; None: not said.
      prefix: `add_prefix_space`, likewise.
      legacy: whether each part of a text between special tokens gets that space; None: not said.
    """

    kind: str | None
    named: Mapping[str, str]
    added: tuple[tokenizers.AddedToken, ...]
    ids: Mapping[str, int]
    add_start: bool | None
    add_end: bool | None
    prefix: bool | None
    legacy: bool | None


def read_settings(files: Mapping[str, bytes], where: str) -> TokenizerSettings:
    """Returns the settings in the files of a directory.

    Args:
      files: content by name; those that do not matter here may be among them.
      where: the directory, for messages.

    Raises:
      InputError: a file is damaged, or a token in it is none.
    """

    def parsed(name: str) -> dict[str, Any]:
        return parse_object(files[name], f"{where}: {name}") if name in files else {}

    config = parsed(CONFIG)
    numbered = config.get("added_tokens_decoder")
    # Written since the library names all added tokens in the config; then the others are not read.
    others = {} if numbered is not None else parsed(SPECIAL)
    sources = {**config, **others}
    named = {
        role: _token(sources[role], True, f"{where}: {role}")
        for role in NAMED
        if sources.get(role) is not None
    }
    extra: Any = next((sources[key] for key in _EXTRA if sources.get(key)), [])
    extra = list(extra.values()) if isinstance(extra, dict) else extra
    if not isinstance(extra, list):
        raise InputError(f"{where}: extra special tokens are {extra!r}, expected a list")
    special = [_token(token, True, f"{where}: a special token") for token in extra]
    named_texts = {token.content for token in named.values()}
    if numbered is None:
        known = named_texts | {token.content for token in special}
        added = {
            index: _token(text, text in known, f"{where}: {ADDED}")
            for text, index in parsed(ADDED).items()
        }
    else:
        added = {
            index: _token(token, False, f"{where}: added_tokens_decoder")
            for index, token in _mapping(numbered, f"{where}: added_tokens_decoder").items()
        }
    by_id = {_id(index, where): token for index, token in added.items()}
    for token in by_id.values():
        token.special = token.special or token.content in named_texts
    kind = config.get("tokenizer_class")
    return TokenizerSettings(
        kind.removesuffix("Fast") if isinstance(kind, str) else None,
        {role: token.content for role, token in named.items()},
        (*(by_id[index] for index in sorted(by_id)), *named.values(), *special),
        {token.content: index for index, token in by_id.items()},
        _flag(config, "add_bos_token", where),
        _flag(config, "add_eos_token", where),
        _flag(config, "add_prefix_space", where),
        _flag(config, "legacy", where),
    )


def _token(value: Any, special: bool, where: str) -> tokenizers.AddedToken:
    """Returns a token that is given by its text, or as an object with flags."""
    flags: Mapping[str, Any] = {"special": special}
    if isinstance(value, dict):
        flags = {**flags, **{flag: value[flag] for flag in _FLAGS if flag in value}}
        value = value.get("content")
    if not isinstance(value, str) or not value or set(map(type, flags.values())) - {bool}:
        raise InputError(f"{where} is no token: expected its text, or an object with content")
    return tokenizers.AddedToken(value, **{"normalized": not flags["special"], **flags})


def _mapping(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InputError(f"{where} is {value!r}, expected an object")
    return value


def _id(value: Any, where: str) -> int:
    try:
        return int(value)
    except (TypeError, ValueError):
        raise InputError(f"{where}: the id of an added token is {value!r}, no number") from None


def _flag(config: Mapping[str, Any], key: str, where: str) -> bool | None:
    value = config.get(key)
    if not isinstance(value, bool | None):
        raise InputError(f"{where}: {CONFIG}: {key} is {value!r}, expected true or false")
    return value
