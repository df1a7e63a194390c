"""Cuts the reading of source files into work units that any number of processes may share.

The cut follows from the sources alone, so the outcome does not depend on who does it.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import BinaryIO

import zstandard

from modbrick.data.preparation.sources import Source
from modbrick.errors import InputError
from modbrick.schema import nearest

UNIT_BYTES = 4 << 20
_CHUNK = 1 << 20


@dataclass(frozen=True)
class ReadingOptions:
    """Options for finding texts in sources and assigning them to splits.

    Attributes:
      text_field: field or column of records.
      held_out: share of the documents, by hash.
      separator: text files are cut into documents at this string; None: a file is a document.
    """

    text_field: str = "text"
    held_out: float = 0.05
    separator: str | None = None


@dataclass
class SourceRecord:
    """Outcome of (part of) a source file."""

    size: int = 0
    sha256: str = ""
    documents: int = 0
    skipped: Counter[str] = field(default_factory=Counter)

    def merge(self, other: SourceRecord) -> None:
        """Adds the outcome of another part of the same file."""
        self.size += other.size
        self.sha256 = self.sha256 or other.sha256
        self.documents += other.documents
        self.skipped += other.skipped


@dataclass(frozen=True)
class WorkUnit:
    """Whole text files; or some lines, or one row group, of one file of records.

    Attributes:
      sources: numbers of the source files.
      lines: of a JSON-lines file, from line `first_row` on.
      row_group: of a Parquet file, whose first row is `first_row`.
      advance: bytes of source files done with this work unit, for progress.
    """

    sources: tuple[int, ...]
    lines: tuple[bytes, ...] | None = None
    row_group: int | None = None
    first_row: int = 0
    advance: int = 0


def cut_into_work_units(
    sources: Sequence[Source], options: ReadingOptions, records: Mapping[int, SourceRecord]
) -> Iterator[WorkUnit]:
    """Yields the work units of all sources in order.

    Files of records are hashed on the way: size and hash are put into `records`.

    Raises:
      InputError: a damaged file of records, or a Parquet file without the text column.
    """
    group: list[int] = []
    size = 0
    for number, source in enumerate(sources):
        if source.kind == "text":
            group.append(number)
            size += source.size
        if group and (source.kind != "text" or size >= UNIT_BYTES):
            yield WorkUnit(tuple(group), advance=size)
            group, size = [], 0
        if source.kind == "json_lines":
            yield from _cut_lines(number, source, records[number])
        elif source.kind == "parquet":
            yield from _cut_row_groups(number, source, options, records[number])
    if group:
        yield WorkUnit(tuple(group), advance=size)


def _cut_row_groups(
    number: int, source: Source, options: ReadingOptions, record: SourceRecord
) -> Iterator[WorkUnit]:
    import pyarrow
    import pyarrow.parquet

    try:
        with open(source.path, "rb") as raw:
            record.sha256 = hashlib.file_digest(raw, "sha256").hexdigest()
        record.size = source.size
        with pyarrow.parquet.ParquetFile(source.path) as file:
            metadata, schema = file.metadata, file.schema_arrow
    except (pyarrow.ArrowException, OSError) as error:
        raise damaged(source, error) from None
    if options.text_field not in schema.names:
        remark = nearest(options.text_field, schema.names)
        raise InputError(
            f"{source.path}: no column {options.text_field!r}; {remark} (--text_field)"
        )
    kind = schema.field(options.text_field).type
    if str(kind).removeprefix("large_") not in ("string", "binary", "string_view"):
        raise InputError(
            f"{source.path}: column {options.text_field!r} holds {kind}, not text; choose "
            "another with --text_field"
        )
    first = done = 0
    for group in range(metadata.num_row_groups):
        rows = metadata.row_group(group).num_rows
        upto = source.size * (first + rows) // max(metadata.num_rows, 1)
        yield WorkUnit((number,), row_group=group, first_row=first, advance=upto - done)
        first, done = first + rows, upto


def _cut_lines(number: int, source: Source, record: SourceRecord) -> Iterator[WorkUnit]:
    try:
        with open(source.path, "rb") as file:
            hashing = _HashingReader(file)
            first, done, rest = 0, 0, b""
            for chunk in _decompressed(source.path, hashing):
                rest += chunk
                if len(rest) < UNIT_BYTES or (end := rest.rfind(b"\n") + 1) == 0:
                    continue
                lines = tuple(rest[:end].split(b"\n")[:-1])
                rest = rest[end:]
                yield WorkUnit((number,), lines, None, first, hashing.size - done)
                first, done = first + len(lines), hashing.size
            hashing.read_to_end()
            yield WorkUnit((number,), tuple(rest.split(b"\n")), None, first, hashing.size - done)
    except (OSError, EOFError, zlib.error, zstandard.ZstdError) as error:
        raise damaged(source, error) from None
    record.size, record.sha256 = hashing.size, hashing.digest.hexdigest()


def _decompressed(path: str, file: _HashingReader) -> Iterator[bytes]:
    if path.lower().endswith(".gz"):
        with gzip.GzipFile(fileobj=io.BufferedReader(file, _CHUNK)) as unzipped:
            while chunk := unzipped.read(_CHUNK):
                yield chunk
        return
    if not path.lower().endswith(".zst"):
        while chunk := file.read(_CHUNK):
            yield chunk
        return
    # The stream reader of the library takes a cut-off file for a whole one; this does not.
    frame = None
    while chunk := file.read(_CHUNK):
        while chunk:
            if frame is None:
                frame = zstandard.ZstdDecompressor().decompressobj()
            yield frame.decompress(chunk)
            chunk = b""
            if frame.eof:
                chunk, frame = frame.unused_data, None
    if frame is not None:
        raise EOFError("ends in the middle of a frame")


class _HashingReader(io.RawIOBase):
    """Reads a file, and hashes and counts what was read."""

    def __init__(self, file: BinaryIO):
        self._file = file
        self.digest = hashlib.sha256()
        self.size = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        count = self._file.readinto(buffer)  # type: ignore[attr-defined]
        self.digest.update(buffer[:count])
        self.size += count
        return count

    def read_to_end(self) -> None:
        while self.read(_CHUNK):
            pass


def damaged(source: Source, error: Exception) -> InputError:
    """Returns the error for a file of records that cannot be read to its end."""
    reason = (str(error) or type(error).__name__).splitlines()[0][:200]
    return InputError(
        f"{source.path}: damaged or unreadable ({reason}); mend it or leave it out of --input"
    )
