"""Writes a data set: whole or not at all."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter
from jaxtyping import Integer

from modbrick.data.manifest import (
    FORMAT_VERSION,
    INDEX_FILE,
    MANIFEST,
    SOURCES_FILE,
    SPLITS,
    DomainManifest,
    Manifest,
    Shard,
    SourceSummary,
    Split,
)
from modbrick.data.paths import data_path
from modbrick.data.records import PART, encode_record, id_dtype
from modbrick.data.tokenizers.tokenizer import TOKENIZER_FILE, Tokenizer
from modbrick.errors import InputError
from modbrick.schema import to_json

SHARD_BYTES = 256 << 20
_LOCK = ".lock"


class DatasetWriter:
    """Collects documents in a directory beside the target, which `commit` renames into place.

    A context manager: leaving it without `commit` removes everything written. What a killed process
    left behind is removed by the next writer of the same target.

    Args:
      directory: the target (local). It must not exist, or be empty, or hold a data set (see
        `overwrite`).
      overwrite: replace the data set that the target holds.
      shard_bytes: a shard is closed once it holds so many bytes of ids, before compression.
    """

    def __init__(self, directory: str, *, overwrite: bool = False, shard_bytes: int = SHARD_BYTES):
        self._target = Path(data_path(directory)).absolute()
        self._shard_bytes = shard_bytes
        check_target(str(self._target), overwrite=overwrite)
        self._partial = self._target.parent / f".{self._target.name}.preparing"
        self._replaced = self._target.parent / f".{self._target.name}.replaced"
        self._committed = False
        self._tokenizer: Tokenizer | None = None
        self._domains: dict[tuple[str, str], _DomainWriter] = {}
        self._lock: IO[str] | None = None

    def __enter__(self) -> DatasetWriter:
        try:
            self._partial.mkdir(parents=True, exist_ok=True)
            self._lock = open(self._partial / _LOCK, "w")
        except OSError as error:
            raise InputError(
                f"{self._target}: cannot write there ({error.strerror}); choose another --output"
            ) from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.close()
            raise InputError(
                f"{self._target}: another process is preparing it; wait for it, or choose "
                "another --output"
            ) from None
        for leftover in self._partial.iterdir():
            if leftover.name != _LOCK:
                shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
        if self._replaced.exists():  # killed while it put a new data set in the place of this one
            if self._target.exists():
                shutil.rmtree(self._replaced)
            else:
                self._replaced.rename(self._target)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for domain in self._domains.values():
            domain.discard()
        if not self._committed:
            shutil.rmtree(self._partial)
        if self._lock is not None:
            self._lock.close()

    def set_tokenizer(self, tokenizer: Tokenizer) -> None:
        """Keeps the tokenizer with the data. To be called once, before the first document."""
        self._tokenizer = tokenizer
        (self._partial / TOKENIZER_FILE).write_text(tokenizer.to_json(), encoding="utf-8")

    def add(
        self,
        split: Split,
        domain: str,
        ids: Integer[np.ndarray, " T"],
        byte_count: int,
        unscored_bytes: int = 0,
    ) -> None:
        """Adds a document.

        Args:
          split: where it belongs.
          domain: its kind of text.
          ids: its ids with boundary tokens; at least two (an id and a target).
          byte_count: UTF-8 bytes of its text.
          unscored_bytes: bytes of its text that no target stands for.
        """
        assert self._tokenizer is not None, "set_tokenizer comes first"
        key = (split, domain)
        if key not in self._domains:
            self._domains[key] = _DomainWriter(
                self._partial / split / domain,
                id_dtype(self._tokenizer.vocabulary),
                self._shard_bytes,
            )
        self._domains[key].add(ids, byte_count, unscored_bytes)

    def commit(
        self,
        *,
        sources: Mapping[str, SourceSummary],
        source_lines: str,
        arguments: Mapping[str, Any],
    ) -> Manifest:
        """Finishes every file and moves the data set into place.

        Raises:
          InputError: no document was added.
        """
        assert self._tokenizer is not None, "set_tokenizer comes first"
        if not self._domains:
            raise InputError(
                "no document was found in the inputs: nothing to write; check --input, "
                "--extensions and --text_field"
            )
        splits: dict[str, dict[str, DomainManifest]] = {split: {} for split in SPLITS}
        for (split, domain), writer in sorted(self._domains.items()):
            splits[split][domain] = writer.finish()
        manifest = Manifest(FORMAT_VERSION, self._tokenizer.identity, splits, sources, arguments)
        with _told(self._target):
            (self._partial / SOURCES_FILE).write_text(source_lines, encoding="utf-8")
            (self._partial / MANIFEST).write_text(to_json(manifest), encoding="utf-8")
            for file in (MANIFEST, SOURCES_FILE, TOKENIZER_FILE):
                _sync(self._partial / file)
        (self._partial / _LOCK).unlink()
        if self._target.exists():
            self._target.rename(self._replaced)
        self._partial.rename(self._target)
        self._committed = True
        _sync(self._target.parent)
        if self._replaced.exists():
            shutil.rmtree(self._replaced)
        return manifest


def check_target(directory: str, *, overwrite: bool) -> None:
    """Raises `InputError` if a data set may not be written to `directory`."""
    path = Path(data_path(directory))
    if not path.exists():
        return
    if not path.is_dir():
        raise InputError(f"{directory}: is a file; choose a directory for --output")
    if not any(path.iterdir()):
        return
    if not (path / MANIFEST).exists():
        raise InputError(
            f"{directory}: holds something else than a data set; choose an empty or new --output"
        )
    if not overwrite:
        raise InputError(
            f"{directory}: already holds a finished data set; use it, choose another --output, "
            "or replace it with --overwrite"
        )


class _DomainWriter:
    """The shards and the index of one domain in one split."""

    def __init__(self, directory: Path, dtype: np.dtype, shard_bytes: int):
        directory.mkdir(parents=True)
        self._directory = directory
        self._dtype = dtype
        self._shard_bytes = shard_bytes
        self._index: list[tuple[int, int, int]] = []
        self._largest = -1
        self._content = hashlib.sha256()
        self._shards: list[Shard] = []
        self._writer: ArrayRecordWriter | None = None
        self._records = 0
        self._bytes = 0

    def add(self, ids: Integer[np.ndarray, " T"], byte_count: int, unscored_bytes: int) -> None:
        if self._writer is None:
            # A group of one record is what random access by single records wants.
            self._writer = ArrayRecordWriter(str(self._path()), "group_size:1,zstd:3")
            self._records = self._bytes = 0
        for start in range(0, len(ids), PART):
            record = encode_record(ids[start : start + PART], self._dtype)
            with _told(self._path()):
                self._writer.write(record)
            self._content.update(record)
            self._records += 1
            self._bytes += len(record)
        self._index.append((len(ids) - 1, byte_count, unscored_bytes))
        self._largest = max(self._largest, int(ids.max()))
        if self._bytes >= self._shard_bytes:
            self._close_shard()

    def finish(self) -> DomainManifest:
        self._close_shard()
        index = np.asarray(self._index, np.uint32).reshape(-1, 3)
        path = self._directory / INDEX_FILE
        with _told(path):
            np.save(path, index, allow_pickle=False)
            _sync(path)
        totals = index.sum(axis=0, dtype=np.int64)
        return DomainManifest(
            documents=len(index),
            tokens=int(totals[0]),
            bytes=int(totals[1]),
            unscored_bytes=int(totals[2]),
            largest_id=self._largest,
            content_sha256=self._content.hexdigest(),
            index_sha256=_file_sha256(path),
            shards=tuple(self._shards),
        )

    def discard(self) -> None:
        """Closes an unfinished shard, which nobody will read."""
        if self._writer is not None:
            with contextlib.suppress(RuntimeError):  # the disk is full, for instance
                self._writer.close()
            self._writer = None

    def _path(self) -> Path:
        return self._directory / f"{len(self._shards):05d}.array_record"

    def _close_shard(self) -> None:
        if self._writer is None:
            return
        path = self._path()
        writer, self._writer = self._writer, None
        with _told(path):
            writer.close()
            _sync(path)
        self._shards.append(
            Shard(path.name, self._records, path.stat().st_size, _file_sha256(path))
        )


@contextlib.contextmanager
def _told(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError) as error:  # ArrayRecord raises RuntimeError for all of them
        reason = str(error).splitlines()[0][:200]
        raise InputError(
            f"{path}: cannot be written ({reason}); make room on the disk, or choose another "
            "--output"
        ) from None


def _file_sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
