"""The files of one domain in one split of a data set."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter
from jaxtyping import Integer

from modbrick.data.manifest import INDEX_FILE, DomainManifest, Shard
from modbrick.data.records import PART, encode_record
from modbrick.errors import InputError


class DomainWriter:
    """Writes the shards and the index of one domain in one split.

    Args:
      directory: to be made.
      dtype: of the ids on the disk.
      shard_bytes: a shard is closed once it holds so many bytes of ids, before compression.
    """

    def __init__(self, directory: Path, dtype: np.dtype, shard_bytes: int):
        with told(directory):
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
        """Adds a document; arguments as of `DatasetWriter.add`."""
        if self._writer is None:
            # A group of one record is what random access by single records wants.
            with told(self._path()):
                self._writer = ArrayRecordWriter(str(self._path()), "group_size:1,zstd:3")
            self._records = self._bytes = 0
        for start in range(0, len(ids), PART):
            record = encode_record(ids[start : start + PART], self._dtype)
            with told(self._path()):
                self._writer.write(record)
            self._content.update(record)
            self._records += 1
            self._bytes += len(record)
        self._index.append((len(ids) - 1, byte_count, unscored_bytes))
        self._largest = max(self._largest, int(ids.max()))
        if self._bytes >= self._shard_bytes:
            self._close_shard()

    def finish(self) -> DomainManifest:
        """Closes the last shard, writes the index, and returns what was written."""
        self._close_shard()
        index = np.asarray(self._index, np.uint32).reshape(-1, 3)
        path = self._directory / INDEX_FILE
        with told(path):
            np.save(path, index, allow_pickle=False)
            sync(path)
            digest = file_sha256(path)
        totals = index.sum(axis=0, dtype=np.int64)
        return DomainManifest(
            documents=len(index),
            tokens=int(totals[0]),
            bytes=int(totals[1]),
            unscored_bytes=int(totals[2]),
            largest_id=self._largest,
            content_sha256=self._content.hexdigest(),
            index_sha256=digest,
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
        with told(path):
            writer.close()
            sync(path)
            size, digest = path.stat().st_size, file_sha256(path)
        self._shards.append(Shard(path.name, self._records, size, digest))


@contextlib.contextmanager
def told(path: Path) -> Iterator[None]:
    """Says in one line that a file cannot be written.

    Raises:
      InputError: the body raised what writing raises.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:  # ArrayRecord raises RuntimeError for all of them
        reason = str(error).splitlines()[0][:200]
        raise InputError(
            f"{path}: cannot be written ({reason}); make room on the disk, or choose another "
            "--output"
        ) from None


def file_sha256(path: Path) -> str:
    """Returns the hash of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Waits until a file, or the names in a directory, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
