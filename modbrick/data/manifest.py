"""Manifest of a data set, its `dataset.json`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from modbrick.data.tokenizers.tokenizer import TokenizerIdentity
from modbrick.schema import to_mapping

MANIFEST = "dataset.json"
INDEX_FILE = "documents.npy"
SOURCES_FILE = "sources.jsonl"
FORMAT_VERSION = 1
Split = Literal["train", "held_out"]
SPLITS: tuple[Split, ...] = ("train", "held_out")
REMEDY = "prepare the data again, or copy it again in full"


@dataclass(frozen=True)
class Shard:
    """One ArrayRecord file; `size` in bytes."""

    file: str
    records: int
    size: int
    sha256: str


@dataclass(frozen=True)
class DomainManifest:
    """The documents of one domain in one split.

    Attributes:
      documents: how many.
      tokens: targets in them (see the module's docstring).
      bytes: UTF-8 bytes of their text.
      unscored_bytes: of those, bytes that no target stands for.
      largest_id: largest token id in them (-1: none).
      content_sha256: of all ids in order, whatever the sharding and compression.
      index_sha256: of the index file.
      shards: in the order of the documents.
    """

    documents: int
    tokens: int
    bytes: int
    unscored_bytes: int
    largest_id: int
    content_sha256: str
    index_sha256: str
    shards: tuple[Shard, ...]


@dataclass(frozen=True)
class SourceSummary:
    """The source files of one domain; `sha256` is over their paths and hashes in order."""

    files: int
    bytes: int
    sha256: str
    skipped: Mapping[str, int]


@dataclass(frozen=True)
class Manifest:
    """Contents of `dataset.json`. `arguments` are those that the data set was prepared with."""

    format_version: int
    tokenizer: TokenizerIdentity
    splits: Mapping[str, Mapping[str, DomainManifest]]
    sources: Mapping[str, SourceSummary]
    arguments: Mapping[str, Any]

    def fingerprint(self) -> str:
        """Returns a hash of tokens, tokenizer and domains, however they are stored."""
        tokenizer = {k: v for k, v in to_mapping(self.tokenizer).items() if k != "name"}
        content = {
            split: {
                name: [d.content_sha256, d.documents, d.tokens, d.bytes, d.unscored_bytes]
                for name, d in domains.items()
            }
            for split, domains in self.splits.items()
        }
        text = json.dumps([self.format_version, tokenizer, content], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()
