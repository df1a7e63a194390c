"""Writes a data set: whole or not at all."""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np
from jaxtyping import Integer

from modbrick.data.domain_writer import DomainWriter, sync, told
from modbrick.data.manifest import (
    FORMAT_VERSION,
    MANIFEST,
    SOURCES_FILE,
    SPLITS,
    DomainManifest,
    Manifest,
    SourceSummary,
    Split,
)
from modbrick.data.paths import data_path, readable
from modbrick.data.records import id_dtype
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
        self._domains: dict[tuple[str, str], DomainWriter] = {}
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
        self._put_back()
        if self._replaced.exists():
            shutil.rmtree(self._replaced)
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
            # What cannot be removed now, the next writer removes.
            shutil.rmtree(self._partial, ignore_errors=True)
            self._put_back()
        if self._lock is not None:
            self._lock.close()

    def _put_back(self) -> None:
        """Undoes the replacing of a data set that failed, or was killed, halfway."""
        if self._replaced.exists() and not self._target.exists():
            self._replaced.rename(self._target)

    def set_tokenizer(self, tokenizer: Tokenizer) -> None:
        """Keeps the tokenizer with the data. To be called once, before the first document."""
        self._tokenizer = tokenizer
        path = self._partial / TOKENIZER_FILE
        with told(path):
            path.write_text(tokenizer.to_json(), encoding="utf-8")

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
            self._domains[key] = DomainWriter(
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
        with told(self._target):
            (self._partial / SOURCES_FILE).write_text(source_lines, encoding="utf-8")
            (self._partial / MANIFEST).write_text(to_json(manifest), encoding="utf-8")
            for file in (MANIFEST, SOURCES_FILE, TOKENIZER_FILE):
                sync(self._partial / file)
            (self._partial / _LOCK).unlink()
            if self._target.exists():
                self._target.rename(self._replaced)
            self._partial.rename(self._target)
            self._committed = True
            sync(self._target.parent)
        shutil.rmtree(self._replaced, ignore_errors=True)
        return manifest


def check_target(directory: str, *, overwrite: bool) -> None:
    """Raises `InputError` if a data set may not be written to `directory`."""
    path = Path(data_path(directory))
    with readable(directory):
        if not path.exists() or (path.is_dir() and not any(path.iterdir())):
            return
    if not path.is_dir():
        raise InputError(f"{directory}: is a file; choose a directory for --output")
    if not (path / MANIFEST).exists():
        raise InputError(
            f"{directory}: holds something else than a data set; choose an empty or new --output"
        )
    if not overwrite:
        raise InputError(
            f"{directory}: already holds a finished data set; use it, choose another --output, "
            "or replace it with --overwrite"
        )
