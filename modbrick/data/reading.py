"""From source files to texts, in tasks that any number of processes may share.

How the work is cut into tasks follows from the sources alone, so the outcome does not depend on who
does it.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import BinaryIO

import zstandard

from modbrick.data.dataset import Split
from modbrick.data.sources import Source
from modbrick.errors import InputError
from modbrick.schema import nearest

TASK_BYTES = 4 << 20
_CHUNK = 1 << 20
_LARGEST_DOCUMENT = 0xFFFF_FFFF  # sizes are kept as uint32
_BINARY_PROBE = 8192


@dataclass(frozen=True)
class ReadingOptions:
    """How texts are found in sources and which split they go to.

    Attributes:
      text_field: field or column of records.
      held_out: share of the documents, by hash.
      separator: text files are cut into documents at this string; None: a file is a document.
    """

    text_field: str = "text"
    held_out: float = 0.05
    separator: str | None = None


@dataclass(frozen=True)
class Text:
    """A document before it is encoded; `fraction` is its hash as a number in [0, 1)."""

    source: int
    split: Split
    fraction: float
    text: str


@dataclass
class SourceRecord:
    """What became of (part of) a source file."""

    size: int = 0
    sha256: str = ""
    documents: int = 0
    skipped: Counter[str] = field(default_factory=Counter)

    def merge(self, other: SourceRecord) -> None:
        """Adds what became of another part of the same file."""
        self.size += other.size
        self.sha256 = self.sha256 or other.sha256
        self.documents += other.documents
        self.skipped += other.skipped


@dataclass(frozen=True)
class Task:
    """Whole text files; or some lines, or one row group, of one file of records.

    Attributes:
      sources: numbers of the source files.
      lines: of a JSON-lines file, from line `first_row` on.
      row_group: of a Parquet file, whose first row is `first_row`.
      advance: bytes of source files done with this task, for progress.
    """

    sources: tuple[int, ...]
    lines: tuple[bytes, ...] | None = None
    row_group: int | None = None
    first_row: int = 0
    advance: int = 0


def cut_into_tasks(
    sources: Sequence[Source], options: ReadingOptions, records: Mapping[int, SourceRecord]
) -> Iterator[Task]:
    """Yields the tasks of all sources in order.

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
        if group and (source.kind != "text" or size >= TASK_BYTES):
            yield Task(tuple(group), advance=size)
            group, size = [], 0
        if source.kind == "json_lines":
            yield from _cut_lines(number, source, records[number])
        elif source.kind == "parquet":
            yield from _cut_row_groups(number, source, options, records[number])
    if group:
        yield Task(tuple(group), advance=size)


def read_task(
    task: Task, sources: Sequence[Source], options: ReadingOptions
) -> tuple[list[Text], dict[int, SourceRecord]]:
    """Returns the texts of a task, and what became of its sources."""
    records = {number: SourceRecord() for number in task.sources}
    texts: list[Text] = []
    for number in task.sources:
        source, record = sources[number], records[number]
        if task.lines is not None:
            found: Iterator[tuple[int | None, str]] = _json_texts(
                task.lines, task.first_row, options, record
            )
        elif task.row_group is not None:
            found = _parquet_texts(source, task, options, record)
        else:
            found = _file_texts(source, options, record)
        for key, text in found:
            if not text:
                record.skipped["empty"] += 1
                continue
            fraction = _fraction(source.name if key is None else f"{source.name}#{key}")
            split = source.split or ("held_out" if fraction < options.held_out else "train")
            texts.append(Text(number, split, fraction, text))
            record.documents += 1
    return texts, records


def _fraction(key: str) -> float:
    digest = hashlib.sha256(key.encode("utf-8", "surrogateescape"))
    return int.from_bytes(digest.digest()[:8], "big") / 2.0**64


def _file_texts(
    source: Source, options: ReadingOptions, record: SourceRecord
) -> Iterator[tuple[int | None, str]]:
    try:
        with open(source.path, "rb") as file:
            raw = file.read()
    except OSError as error:
        record.skipped[f"unreadable ({error.strerror})"] += 1
        return
    record.size = len(raw)
    record.sha256 = hashlib.sha256(raw).hexdigest()
    if b"\0" in raw[:_BINARY_PROBE]:
        record.skipped["binary"] += 1
        return
    if len(raw) > _LARGEST_DOCUMENT and options.separator is None:
        record.skipped["larger than 4 GiB (cut it with --document_separator)"] += 1
        return
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        record.skipped["not UTF-8"] += 1
        return
    if options.separator is None:
        yield None, text
        return
    for number, part in enumerate(text.split(options.separator)):
        # What is left around separators is no document, and no loss either.
        if part.strip():
            yield number, part.strip("\n")


def _json_texts(
    lines: Sequence[bytes], first: int, options: ReadingOptions, record: SourceRecord
) -> Iterator[tuple[int | None, str]]:
    for row, line in enumerate(lines, start=first):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except UnicodeDecodeError:
            record.skipped["not UTF-8"] += 1
            continue
        except json.JSONDecodeError:
            record.skipped["not JSON"] += 1
            continue
        if not isinstance(value, dict) or options.text_field not in value:
            names = ", ".join(map(str, value)) if isinstance(value, dict) else "no fields"
            record.skipped[f"no field {options.text_field!r} (found: {names[:80]})"] += 1
            continue
        text = value[options.text_field]
        if not isinstance(text, str):
            record.skipped[f"field {options.text_field!r} is not text"] += 1
        elif not _encodable(text):
            record.skipped["not Unicode (lone surrogates)"] += 1
        else:
            yield row, text


def _encodable(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _parquet_texts(
    source: Source, task: Task, options: ReadingOptions, record: SourceRecord
) -> Iterator[tuple[int | None, str]]:
    import pyarrow  # slow to import, and rarely needed
    import pyarrow.parquet

    row = task.first_row
    try:
        with pyarrow.parquet.ParquetFile(source.path) as file:
            for batch in file.iter_batches(
                batch_size=1024, row_groups=[task.row_group], columns=[options.text_field]
            ):
                for text in batch.column(0).to_pylist():
                    if isinstance(text, bytes):
                        try:
                            text = text.decode("utf-8")
                        except UnicodeDecodeError:
                            record.skipped["not UTF-8"] += 1
                            row += 1
                            continue
                    yield row, text or ""
                    row += 1
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise _damaged(source, error) from None


def _cut_row_groups(
    number: int, source: Source, options: ReadingOptions, record: SourceRecord
) -> Iterator[Task]:
    import pyarrow
    import pyarrow.parquet

    try:
        with open(source.path, "rb") as raw:
            record.sha256 = hashlib.file_digest(raw, "sha256").hexdigest()
        record.size = source.size
        with pyarrow.parquet.ParquetFile(source.path) as file:
            metadata, schema = file.metadata, file.schema_arrow
    except (pyarrow.ArrowException, OSError) as error:
        raise _damaged(source, error) from None
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
        yield Task((number,), row_group=group, first_row=first, advance=upto - done)
        first, done = first + rows, upto


def _cut_lines(number: int, source: Source, record: SourceRecord) -> Iterator[Task]:
    try:
        with open(source.path, "rb") as file:
            hashing = _HashingReader(file)
            first, done, rest = 0, 0, b""
            for chunk in _decompressed(source.path, hashing):
                rest += chunk
                if len(rest) < TASK_BYTES or (end := rest.rfind(b"\n") + 1) == 0:
                    continue
                lines = tuple(rest[:end].split(b"\n")[:-1])
                rest = rest[end:]
                yield Task((number,), lines, None, first, hashing.size - done)
                first, done = first + len(lines), hashing.size
            hashing.read_to_end()
            yield Task((number,), tuple(rest.split(b"\n")), None, first, hashing.size - done)
    except (OSError, EOFError, zlib.error, zstandard.ZstdError) as error:
        raise _damaged(source, error) from None
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


def _damaged(source: Source, error: Exception) -> InputError:
    reason = (str(error) or type(error).__name__).splitlines()[0][:200]
    return InputError(
        f"{source.path}: damaged or unreadable ({reason}); mend it or leave it out of --input"
    )
