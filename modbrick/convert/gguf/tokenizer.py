"""Tokenizers inside GGUF files, as files that the tokenizers and transformers libraries read.

Kinds of tokens and of pre-tokenizers as in github.com/ggml-org/llama.cpp, src/llama-vocab.cpp. What
splits text into words stands in files only as a name; the patterns belong to the tokenizers of that
name: GPT-2's, Llama 3's, and those derived from them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from modbrick.convert.gguf.keys import Keys
from modbrick.convert.gguf.values import StringArray, shown
from modbrick.data.tokenizers.pieces import sentencepiece_parts
from modbrick.errors import InputError

PREFIX = "tokenizer."

MOST_TEXTS = 1 << 20
"""Tokens or merges; large vocabularies have 260,000."""

UNKNOWN, CONTROL, USER_DEFINED = 2, 3, 4
"""Types of tokens that are matched whole, wherever they stand."""

_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA_3 = rf"(?i:'s|'t|'re|'ve|'m|'ll|'d)|{_WORDS}|\p{{N}}{{1,3}}|{_REST}"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _byte_level(*, pattern: bool) -> dict[str, Any]:
    """The step to symbols for bytes, after GPT-2's own pattern or alone."""
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False}
    return {**level, "use_regex": pattern}


def _sequence(*steps: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", "pretokenizers": list(steps)}


def _split(pattern: str) -> dict[str, Any]:
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated"}
    return _sequence({**split, "invert": False}, _byte_level(pattern=False))


_GPT_2 = _byte_level(pattern=True)
_SINGLE_DIGITS = _sequence({"type": "Digits", "individual_digits": True}, _GPT_2)

PRE_TOKENIZERS: Mapping[str, tuple[dict[str, Any], bool]] = {
    "gpt-2": (_GPT_2, False),
    "smollm": (_SINGLE_DIGITS, False),
    "starcoder": (_SINGLE_DIGITS, False),
    "refact": (_SINGLE_DIGITS, False),
    "smaug-bpe": (_split(_LLAMA_3), False),
    "llama-bpe": (_split(_LLAMA_3), True),
    "llama-v3": (_split(_LLAMA_3), True),
    "llama3": (_split(_LLAMA_3), True),
    "tekken": (_split(_TEKKEN), True),
}
"""By name: how text is split, and whether words that are tokens are taken before any merge."""

BEGIN_BY_DEFAULT = ("llama-bpe", "llama-v3", "llama3", "tekken")
"""Pre-tokenizers whose models begin with the start token where files do not say it."""


def unsupported(metadata: Mapping[str, Any]) -> str | None:
    """Returns why a file's tokenizer is not read, or None if it is.

    The weights are of use without it, with a `tokenizer.json` from elsewhere.
    """
    kind = metadata.get("tokenizer.ggml.model")
    if kind is None:
        return "there is no tokenizer in the file"
    if not isinstance(kind, str) or kind not in ("gpt2", "llama"):
        return f"its model is {shown(kind)}; gpt2 (BPE) and llama (SentencePiece) are read"
    if kind == "gpt2":
        pre = metadata.get("tokenizer.ggml.pre", "default")
        if isinstance(pre, str) and pre in PRE_TOKENIZERS:
            return None
        return f"the pre-tokenizer {shown(pre)} is not one of {', '.join(PRE_TOKENIZERS)}"
    if metadata.get("tokenizer.ggml.remove_extra_whitespaces", False) is not False:
        return "it removes white space (tokenizer.ggml.remove_extra_whitespaces)"
    if "tokenizer.ggml.precompiled_charsmap" in metadata:
        return "it maps characters (tokenizer.ggml.precompiled_charsmap)"
    return None


def tokenizer_files(metadata: Mapping[str, Any], where: str) -> dict[str, bytes]:
    """Returns `tokenizer.json`, `tokenizer_config.json` and `generation_config.json`, by name.

    Args:
      metadata: of a file whose tokenizer is not `unsupported`.
      where: begins every message.

    Raises:
      InputError: the tokenizer contradicts itself.
    """
    keys = Keys(metadata, f"{PREFIX}ggml.", where)
    tokens = _tokens(keys)
    kinds = _numbers(keys, "token_type", len(tokens))
    added = [
        {
            "id": index,
            "content": tokens[index],
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": int(kinds[index]) != USER_DEFINED,
        }
        for index in np.flatnonzero(np.isin(kinds, (UNKNOWN, CONTROL, USER_DEFINED))).tolist()
    ]
    if keys.text("model") == "gpt2":
        parts, begins = _bpe(keys, tokens), keys.text("pre") in BEGIN_BY_DEFAULT
    else:
        scores = _numbers(keys, "scores", len(tokens))
        prefix = keys.flag("add_space_prefix", True)
        parts, begins = sentencepiece_parts(tokens, kinds, scores, prefix, where), True
    named = {name: _special(keys, name, tokens) for name in ("bos", "eos", "unknown", "padding")}
    begins, ends = keys.flag("add_bos_token", begins), keys.flag("add_eos_token", False)
    ahead, behind = [named["bos"]] * begins, [named["eos"]] * ends
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        **parts,
        "post_processor": _template(tokens, ahead, behind),
    }
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        **{f"{name}_token": named[name] for name in ("bos", "eos")},
        "unk_token": named["unknown"],
        "pad_token": named["padding"],
        "chat_template": Keys(metadata, PREFIX, where).text("chat_template", "") or None,
    }
    settings = {name: value for name, value in settings.items() if value is not None}
    ids = {f"{n}_token_id": tokens.index(t) for n, t in named.items() if t and n != "unknown"}
    return {
        "tokenizer.json": _json(tokenizer),
        "tokenizer_config.json": _json(settings),
        "generation_config.json": _json({n.replace("padding", "pad"): i for n, i in ids.items()}),
    }


def _json(data: dict[str, Any]) -> bytes:
    return json.dumps(data, ensure_ascii=False, indent=1).encode("utf-8")


def _tokens(keys: Keys) -> list[str]:
    found = list(_texts(keys, "tokens"))
    if len(set(found)) != len(found):
        first = {token: index for index, token in reversed(list(enumerate(found)))}
        twice = next(token for index, token in enumerate(found) if first[token] != index)
        raise InputError(f"{keys.where}: tokenizer.ggml.tokens has {twice!r} twice")
    return found


def _texts(keys: Keys, name: str) -> StringArray:
    texts = keys.metadata.get(f"{keys.prefix}{name}")
    if not isinstance(texts, StringArray) or len(texts) > MOST_TEXTS:
        raise keys.error(name, f"expected an array of at most {MOST_TEXTS} texts")
    return texts


def _numbers(keys: Keys, name: str, count: int) -> np.ndarray:
    values = keys.metadata.get(f"{keys.prefix}{name}")
    if not isinstance(values, np.ndarray) or len(values) != count:
        raise keys.error(name, f"expected {count} numbers, one for each token")
    return values


def _special(keys: Keys, name: str, tokens: list[str]) -> str | None:
    """Returns the token that a key names by its id, or None if there is no such key."""
    key = f"{name}_token_id"
    if keys.prefix + key not in keys.metadata:
        return None
    index = keys.count(key)
    if index >= len(tokens):
        raise keys.error(key, f"there are {len(tokens)} tokens")
    return tokens[index]


def _bpe(keys: Keys, tokens: list[str]) -> dict[str, Any]:
    """Returns the parts of a `tokenizer.json` for byte-level BPE."""
    vocabulary = {token: index for index, token in enumerate(tokens)}
    merges = []
    for merge in _texts(keys, "merges"):
        cut = merge.find(" ", 1)
        left, right = merge[:cut], merge[cut + 1 :]
        if cut < 1 or not right or not {left, right, left + right} <= vocabulary.keys():
            raise InputError(
                f"{keys.where}: tokenizer.ggml.merges has {merge!r}, no merge of tokens"
            )
        merges.append([left, right])
    splitting, whole_words = PRE_TOKENIZERS[keys.text("pre")]
    return {
        "normalizer": None,
        "pre_tokenizer": splitting,
        "decoder": _GPT_2,
        "model": {
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
        },
    }


def _template(
    tokens: list[str], ahead: list[str | None], behind: list[str | None]
) -> dict[str, Any] | None:
    """Returns the step that puts special tokens around a text, for those who ask for them."""
    special = [token for token in (*ahead, *behind) if token is not None]
    if not special:
        return None

    def around(sequence: str, number: int) -> list[dict[str, Any]]:
        marks = [
            [{"SpecialToken": {"id": t, "type_id": number}} for t in side if t]
            for side in (ahead, behind)
        ]
        return [*marks[0], {"Sequence": {"id": sequence, "type_id": number}}, *marks[1]]

    return {
        "type": "TemplateProcessing",
        "single": around("A", 0),
        "pair": around("A", 0) + around("B", 1),
        "special_tokens": {
            token: {"id": token, "ids": [tokens.index(token)], "tokens": [token]}
            for token in special
        },
    }
