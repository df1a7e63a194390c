"""Byte-level BPE in two files (`vocab.json`, `merges.txt`) as parts of a `tokenizer.json`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from modbrick.data.tokenizers.parts import byte_pair_model
from modbrick.data.tokenizers.tokenizer import UnreadTokenizerError
from modbrick.errors import InputError
from modbrick.formats.strict_json import parse_object

VOCABULARY, MERGES = "vocab.json", "merges.txt"

QWEN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How Qwen's tokenizers split text."""

BOUNDARIES: Mapping[str, tuple[str | None, str]] = {
    "GPT2Tokenizer": ("<|endoftext|>", "<|endoftext|>"),
    "CodeGenTokenizer": ("<|endoftext|>", "<|endoftext|>"),
    "Qwen2Tokenizer": (None, "<|endoftext|>"),
}
"""Start and end token of the library's classes that such files belong to."""


def read_byte_pairs(
    files: Mapping[str, bytes], kind: str, *, prefix: bool, where: str
) -> dict[str, Any]:
    """Returns the parts of a `tokenizer.json`.

    Args:
      files: the two, by name.
      kind: the library's class, which decides how text is split.
      prefix: whether a space is put before a text.
      where: the directory, for messages.

    Raises:
      InputError: a file is damaged.
      UnreadTokenizerError: of the class it is not known how text is split.
    """
    if kind not in BOUNDARIES:
        raise UnreadTokenizerError(
            f"{where}: how a {kind} splits text is not known from {VOCABULARY} and {MERGES}; of "
            f"such files {', '.join(BOUNDARIES)} are read"
        )
    vocabulary = parse_object(files[VOCABULARY], f"{where}: {VOCABULARY}")
    if not vocabulary or not all(type(index) is int for index in vocabulary.values()):
        raise InputError(f"{where}: {VOCABULARY}: expected an id for each token")
    try:
        lines = files[MERGES].decode("utf-8").split("\n")
    except UnicodeDecodeError:
        raise InputError(f"{where}: {MERGES}: not UTF-8 text") from None
    lines = [line.rstrip("\r") for line in lines]
    merges = [line.split(" ") for line in lines if line and not line.startswith("#version")]
    for merge in merges:
        if len(merge) != 2 or not {*merge, "".join(merge)} <= vocabulary.keys():
            raise InputError(f"{where}: {MERGES}: {' '.join(merge)!r} is no merge of tokens")
    level = {"type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": True}
    splitting: dict[str, Any] = {**level, "use_regex": True}
    if kind == "Qwen2Tokenizer":
        split = {"type": "Split", "pattern": {"Regex": QWEN}, "behavior": "Isolated"}
        steps = [{**split, "invert": False}, {**level, "use_regex": False}]
        splitting = {"type": "Sequence", "pretokenizers": steps}
    return {
        "added_tokens": [],
        "normalizer": {"type": "NFC"} if kind == "Qwen2Tokenizer" else None,
        "pre_tokenizer": splitting,
        "decoder": {**level, "use_regex": True},
        "model": byte_pair_model(vocabulary, merges),
    }
