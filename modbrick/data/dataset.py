"""A prepared data set on disk: its manifest, its documents, and whether it is whole.

    DIR/dataset.json                      see `modbrick.data.manifest`
    DIR/tokenizer.json                    the tokenizer that made the ids
    DIR/sources.jsonl                     one line a source file: domain, path, bytes, hash, what
    was skipped DIR/<split>/<domain>/documents.npy    uint32 [N, 3]: targets, bytes, unscored bytes
    of each document DIR/<split>/<domain>/00000.array_record ...

A document is the id sequence `start? text... end?`. Whatever follows its first id is a *target*
once an epoch; all token counts in a manifest are counts of targets, so that they mean the same in
training, mixtures and evaluation. Without a start token the first text token is context only, and
the bytes it stands for are *unscored*: bits per byte divide by `bytes - unscored_bytes`.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from array_record.python.array_record_data_source import ArrayRecordDataSource
from etils import epath
from jaxtyping import Int32, Int64, UInt32

from modbrick.data.integrity import check_domain
from modbrick.data.manifest import (
    FORMAT_VERSION,
    INDEX_FILE,
    MANIFEST,
    REMEDY,
    SPLITS,
    DomainManifest,
    Manifest,
    Split,
)
from modbrick.data.paths import data_path, readable
from modbrick.data.records import PART, decode_record, parts
from modbrick.data.tokenizers.files import load_tokenizer
from modbrick.data.tokenizers.tokenizer import Tokenizer, TokenizerIdentity
from modbrick.errors import InputError
from modbrick.schema import from_json, nearest


@dataclass(frozen=True)
class Documents:
    """The documents of one split, domain after domain, numbered from 0.

    Attributes:
      domains: names in order.
      first: number of the first document of each domain, and the number of all documents, [domains
        + 1].
      targets, bytes, unscored_bytes: of each document, [N].
    """

    domains: tuple[str, ...]
    first: tuple[int, ...]
    targets: Int64[np.ndarray, " N"]
    bytes: Int64[np.ndarray, " N"]
    unscored_bytes: Int64[np.ndarray, " N"]
    source: ArrayRecordDataSource | None
    name: str

    def __len__(self) -> int:
        return len(self.targets)

    @functools.cached_property
    def _first_record(self) -> Int64[np.ndarray, " N"]:
        return np.concatenate([[0], np.cumsum(parts(self.targets + 1))])

    def domain_of(self, document: int) -> int:
        """Returns the index in `domains` of a document."""
        return int(np.searchsorted(self.first, document, side="right")) - 1

    def read(self, document: int, start: int, stop: int) -> Int32[np.ndarray, " T"]:
        """Returns ids `start` to `stop` (exclusive) of a document, boundary tokens included.

        Raises:
          InputError: a damaged record.
        """
        first = int(self._first_record[document])
        found = []
        for part in range(start // PART, (stop - 1) // PART + 1):
            name = f"{self.name}: record {first + part}"
            try:
                record = self.source[first + part]  # type: ignore[index]
            except (RuntimeError, ValueError, OSError) as error:  # RuntimeError: a bad checksum
                reason = str(error).splitlines()[0][:200]
                raise InputError(f"{name} cannot be read ({reason}); {REMEDY}") from None
            ids = decode_record(record, name)
            offset = part * PART
            found.append(ids[max(start - offset, 0) : stop - offset])
        ids = np.concatenate(found).astype(np.int32)
        if len(ids) != stop - start:
            raise InputError(
                f"{self.name}: document {document} ends before id {stop}, its index says "
                f"otherwise; {REMEDY}"
            )
        return ids


@dataclass(frozen=True)
class Dataset:
    """A whole data set; `open` is the way to get one.

    Examples:
        >>> import modbrick
        >>> dataset = modbrick.Dataset.open("data")  # made by scripts/prepare_data.py
        >>> sorted(dataset.domains("train"))
        ['text']
        >>> dataset.tokenizer().decode(dataset.documents("train").read(0, 0, 12))
        'the quick br'
    """

    directory: str
    manifest: Manifest

    @classmethod
    def open(cls, directory: str, *, verify_hashes: bool = False) -> Dataset:
        """Opens a data set and checks that it is whole.

        Every file must be there with its recorded size, every shard must open and hold as many
        records as recorded, every index must match its hash and the counts of the manifest.

        Args:
          directory: local or remote.
          verify_hashes: also read every shard and compare its hash.

        Raises:
          InputError: names the missing or damaged file and the remedy.
        """
        directory = data_path(str(directory))
        with readable(directory):
            return cls._opened(directory, verify_hashes)

    @classmethod
    def _opened(cls, directory: str, verify_hashes: bool) -> Dataset:
        root = epath.Path(directory)
        if not root.exists():
            raise InputError(
                f"{directory}: no such directory; make the data set with scripts/prepare_data.py"
            )
        path = root / MANIFEST
        if not path.exists():
            raise InputError(
                f"{directory}: not a data set (no {MANIFEST}); make one with "
                "scripts/prepare_data.py"
            )
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            raise InputError(f"{path}: damaged (not UTF-8 text); {REMEDY}") from None
        manifest = from_json(Manifest, text, str(path))
        if manifest.format_version != FORMAT_VERSION:
            raise InputError(
                f"{path}: format version {manifest.format_version}, this code reads "
                f"{FORMAT_VERSION}; prepare the data again"
            )
        dataset = cls(directory, manifest)
        for split, domains in manifest.splits.items():
            if split not in SPLITS:
                raise InputError(f"{path}: unknown split {split!r}; {nearest(split, SPLITS)}")
            for domain, described in domains.items():
                check_domain(root / split / domain, described, verify_hashes)
        load_tokenizer(str(root), identity=manifest.tokenizer)
        return dataset

    @property
    def fingerprint(self) -> str:
        """Hash of the tokens, their tokenizer and their domains."""
        return self.manifest.fingerprint()

    @property
    def tokenizer_identity(self) -> TokenizerIdentity:
        """Identity of the tokenizer that made the ids."""
        return self.manifest.tokenizer

    @property
    def largest_id(self) -> int:
        """Largest token id of any split."""
        found = [d.largest_id for s in self.manifest.splits.values() for d in s.values()]
        return max(found, default=-1)

    def tokenizer(self) -> Tokenizer:
        """Loads the tokenizer kept in the data set."""
        return load_tokenizer(self.directory, identity=self.manifest.tokenizer)

    def domains(self, split: Split) -> Mapping[str, DomainManifest]:
        """Returns what the manifest says of each domain that has documents in `split`."""
        return {k: v for k, v in self.manifest.splits.get(split, {}).items() if v.documents}

    def documents(self, split: Split) -> Documents:
        """Returns the documents of a split, ready to be read.

        Raises:
          InputError: the split is empty.
        """
        root = epath.Path(self.directory)
        domains = self.domains(split)
        if not domains:
            remedy = (
                "prepare the data with --held_out_input, or from more documents; to train without "
                "evaluation, set evaluation.every to 0"
                if split == "held_out"
                else "prepare the data with a smaller --held_out"
            )
            raise InputError(f"{self.directory}: the {split} split has no document; {remedy}")
        tables = [_read_index(root / split / d / INDEX_FILE) for d in domains]
        table = np.concatenate(tables).astype(np.int64)
        # The record counts in brackets save opening every shard.
        paths = [
            f"{root / split / domain / shard.file}[0:{shard.records}]"
            for domain, described in domains.items()
            for shard in described.shards
        ]
        return Documents(
            domains=tuple(domains),
            first=(0, *np.cumsum([len(t) for t in tables]).tolist()),
            targets=table[:, 0],
            bytes=table[:, 1],
            unscored_bytes=table[:, 2],
            source=ArrayRecordDataSource(paths),
            name=f"{self.directory}/{split}",
        )


def check_vocabulary(dataset: Dataset, vocabulary: int) -> None:
    """Refuses a data set with a token id that a model has no row for.

    Its tokenizer may have more tokens than that, as those of imported models do.

    Raises:
      InputError: says which vocabulary is needed.
    """
    needed = dataset.largest_id + 1
    if needed > vocabulary:
        raise InputError(
            f"{dataset.directory}: its text ({dataset.tokenizer_identity.name}) has token "
            f"ids up to {needed - 1}, beyond the model's vocabulary of {vocabulary}; set "
            f"model.vocabulary to at least {needed}, or prepare the data with a smaller tokenizer"
        )


def _read_index(path: epath.Path) -> UInt32[np.ndarray, "N 3"]:
    return np.load(io.BytesIO(path.read_bytes()), allow_pickle=False)
