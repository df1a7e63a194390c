"""Texts to token ids, in as many processes as there are."""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import multiprocessing
import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass

import numpy as np
from jaxtyping import Integer

from modbrick.data.manifest import Split
from modbrick.data.preparation.duplicates import minhash_bands
from modbrick.data.preparation.reading import Text, read_work_unit
from modbrick.data.preparation.sources import Source
from modbrick.data.preparation.work_units import (
    ReadingOptions,
    SourceRecord,
    WorkUnit,
    cut_into_work_units,
)
from modbrick.data.records import id_dtype
from modbrick.data.tokenizers.byte import ByteTokenizer
from modbrick.data.tokenizers.files import tokenizer_from_json
from modbrick.data.tokenizers.tokenizer import Tokenizer, TokenizerIdentity
from modbrick.errors import InputError

# Longer texts are encoded in sections of at most so many characters, cut at the end of a line or
# word: a token never crosses a cut, and memory stays bounded.
SECTION = 1 << 20
# Less than this is not worth a process of its own.
_BYTES_A_WORKER = 8 << 20


@dataclass(frozen=True)
class Encoded:
    """An encoded document.

    Attributes:
      source: number of its source.
      split: where it belongs.
      ids: its ids with boundary tokens.
      size, unscored: UTF-8 bytes of its text, and of those that no target stands for.
      digest, bands: of its text, see `Screen`.
    """

    source: int
    split: Split
    ids: Integer[np.ndarray, " T"]
    size: int
    unscored: int
    digest: bytes
    bands: tuple[bytes, ...]


@dataclass
class _Encoder:
    """Reads and encodes work units; one in each process."""

    sources: Sequence[Source]
    options: ReadingOptions
    tokenizer: Tokenizer
    near: bool

    def __call__(self, unit: WorkUnit) -> tuple[list[Encoded], dict[int, SourceRecord]]:
        texts, records = read_work_unit(unit, self.sources, self.options)
        encoded = []
        for text, ids in zip(texts, self._encode(texts), strict=True):
            unscored = 0
            if self.tokenizer.start_of_document is None:
                unscored = self.tokenizer.first_token_bytes(text.text)
            if len(ids) < 2:
                records[text.source].skip("nothing to predict (a single token)")
                records[text.source].documents -= 1
                continue
            size = len(text.text.encode("utf-8"))
            bands = minhash_bands(text.text) if self.near else ()
            encoded.append(
                Encoded(text.source, text.split, ids, size, unscored, text.digest, bands)
            )
        return encoded, records

    def _encode(self, texts: Sequence[Text]) -> list[Integer[np.ndarray, " T"]]:
        dtype = id_dtype(self.tokenizer.vocabulary)
        start, end = self.tokenizer.start_of_document, self.tokenizer.end_of_document
        parts: list[list[np.ndarray]] = [
            [] if start is None else [np.asarray([start], dtype)] for _ in texts
        ]
        owners: list[int] = []
        sections: list[str] = []
        waiting = 0
        for number, text in enumerate(texts):
            for section in _sections(text.text):
                owners.append(number)
                sections.append(section)
                waiting += len(section)
                if waiting >= 4 * SECTION:
                    self._flush(owners, sections, parts, dtype)
                    waiting = 0
        self._flush(owners, sections, parts, dtype)
        for part in parts:
            if end is not None:
                part.append(np.asarray([end], dtype))
        return [np.concatenate(part) if part else np.zeros(0, dtype) for part in parts]

    def _flush(
        self, owners: list[int], sections: list[str], parts: list[list[np.ndarray]], dtype: np.dtype
    ) -> None:
        for owner, ids in zip(owners, self.tokenizer.encode_batch(sections), strict=True):
            parts[owner].append(ids.astype(dtype))
        owners.clear()
        sections.clear()


def _sections(text: str) -> Iterator[str]:
    start = 0
    while len(text) - start > SECTION:
        middle = start + SECTION // 2
        stop = start + SECTION
        cut = text.rfind("\n", middle, stop) + 1 or text.rfind(" ", middle, stop) or stop
        cut = stop if cut <= middle else cut
        yield text[start:cut]
        start = cut
    yield text[start:]


def encode(
    sources: Sequence[Source],
    options: ReadingOptions,
    tokenizer: Tokenizer,
    records: Mapping[int, SourceRecord],
    workers: int,
    *,
    near: bool = False,
) -> Iterator[tuple[WorkUnit, list[Encoded], dict[int, SourceRecord]]]:
    """Yields the encoded documents of each work unit in order, and what became of its sources.

    Args:
      sources: the files.
      options: how texts are found in them.
      tokenizer: encodes the texts.
      records: gets size and hash of files of records, by the number of the source.
      workers: processes; 0: as many as help.
      near: whether near copies are to be told, which takes time.
    """
    units = cut_into_work_units(sources, options, records)
    workers = workers or _useful_workers(sources, tokenizer, near)
    if workers == 1:
        encoder = _Encoder(sources, options, tokenizer, near)
        for unit in units:
            yield (unit, *encoder(unit))
        return
    pool = concurrent.futures.ProcessPoolExecutor(
        workers,
        # A forked child would inherit the tokenizer's threads' locks.
        multiprocessing.get_context("spawn"),
        _start_worker,
        (sources, options, tokenizer.to_json(), tokenizer.identity, near),
    )
    with _shut_down(pool):
        waiting: collections.deque = collections.deque()
        for unit in units:
            waiting.append((unit, pool.submit(_work, unit)))
            if len(waiting) > 2 * workers:
                yield _result(*waiting.popleft())
        while waiting:
            yield _result(*waiting.popleft())


def _useful_workers(sources: Sequence[Source], tokenizer: Tokenizer, near: bool) -> int:
    if isinstance(tokenizer, ByteTokenizer) and not near:
        return 1  # nothing to compute: sending texts between processes costs more
    size = sum(source.size for source in sources)
    return min(len(os.sched_getaffinity(0)), 1 + size // _BYTES_A_WORKER)


def _result(
    unit: WorkUnit, future: concurrent.futures.Future
) -> tuple[WorkUnit, list[Encoded], dict[int, SourceRecord]]:
    try:
        return (unit, *future.result())
    except BrokenProcessPool:
        raise InputError(
            "a worker process ended before its time (out of memory?); run again with fewer "
            "--workers"
        ) from None


@contextlib.contextmanager
def _shut_down(pool: concurrent.futures.ProcessPoolExecutor) -> Iterator[None]:
    try:
        yield
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


_encoder: _Encoder | None = None


def _start_worker(
    sources: Sequence[Source],
    options: ReadingOptions,
    text: str,
    identity: TokenizerIdentity,
    near: bool,
) -> None:
    global _encoder
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # processes are the parallelism
    tokenizer = tokenizer_from_json(text, identity.name, identity=identity)
    _encoder = _Encoder(sources, options, tokenizer, near)


def _work(unit: WorkUnit) -> tuple[list[Encoded], dict[int, SourceRecord]]:
    assert _encoder is not None
    return _encoder(unit)
