"""Tokenizers inside GGUF files, as files that the tokenizers and transformers libraries read.

Kinds of tokens as in github.com/ggml-org/llama.cpp, src/llama-vocab.cpp. What splits text into
words stands in files only as a name, which `pre_tokenizers.py` knows.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from modbrick.convert.gguf.keys import Keys
from modbrick.convert.gguf.pre_tokenizers import BYTE_LEVEL, PRE_TOKENIZERS, PreTokenizer
from modbrick.convert.gguf.values import StringArray, shown
from modbrick.data.tokenizers.parts import added_token, byte_pair_model
from modbrick.data.tokenizers.pieces import sentencepiece_parts
from modbrick.errors import InputError

PREFIX = "tokenizer."

MOST_TEXTS = 1 << 20
"""Tokens or merges; large vocabularies have 260,000."""

NORMAL, UNKNOWN, CONTROL, USER_DEFINED = 1, 2, 3, 4
"""Types of tokens; all but the first are matched whole, wherever they stand."""

DEFAULT = "default"
"""Name of the pre-tokenizer of files that name none."""


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
        pre = metadata.get("tokenizer.ggml.pre", DEFAULT)
        if isinstance(pre, str) and pre in PRE_TOKENIZERS:
            return None if "tokenizer.ggml.merges" in metadata else "it has no merges"
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
    kinds = np.full(len(tokens), NORMAL)
    if f"{keys.prefix}token_type" in metadata:
        kinds = _numbers(keys, "token_type", len(tokens))
    added = [
        added_token(index, tokens[index], special=int(kinds[index]) != USER_DEFINED)
        for index in np.flatnonzero(np.isin(kinds, (UNKNOWN, CONTROL, USER_DEFINED))).tolist()
    ]
    named = {name: _special(keys, name, tokens) for name in ("bos", "eos", "unknown", "padding")}
    if keys.text("model") == "gpt2":
        pre = PRE_TOKENIZERS[keys.text("pre", DEFAULT)]
        parts, begins = _bpe(keys, tokens, pre), pre.begins
    else:
        scores = _numbers(keys, "scores", len(tokens))
        prefix = keys.flag("add_space_prefix", True)
        parts = sentencepiece_parts(tokens, kinds, scores, prefix, where, named["unknown"])
        begins = True
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


def _bpe(keys: Keys, tokens: list[str], pre: PreTokenizer) -> dict[str, Any]:
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
    return {
        "normalizer": None,
        "pre_tokenizer": pre.to_mapping(),
        "decoder": BYTE_LEVEL,
        "model": byte_pair_model(vocabulary, merges, whole_words=pre.whole_words),
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
