"""Texts from the source files of a work unit."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from modbrick.data.manifest import Split
from modbrick.data.preparation.formats.json_values import BadRecordError, text_of
from modbrick.data.preparation.formats.parquet import texts_of_group
from modbrick.data.preparation.formats.streams import (
    DAMAGE,
    HashedFile,
    UnreadableError,
    decompressed,
    unreadable,
)
from modbrick.data.preparation.sources import Source
from modbrick.data.preparation.splits import fraction_of, text_digest
from modbrick.data.preparation.work_units import ReadingOptions, SourceRecord, WorkUnit

_LARGEST_DOCUMENT = 0xFFFF_FFFF  # sizes are kept as uint32
_BINARY_PROBE = 8192


@dataclass(frozen=True)
class Text:
    """A document before it is encoded; `digest` is that of its text, see `text_digest`."""

    source: int
    split: Split
    digest: bytes
    text: str


def read_work_unit(
    unit: WorkUnit, sources: Sequence[Source], options: ReadingOptions
) -> tuple[list[Text], dict[int, SourceRecord]]:
    """Returns the texts of a work unit, and what became of its sources."""
    records = {number: SourceRecord() for number in unit.sources}
    texts: list[Text] = []
    for number in unit.sources:
        source, record = sources[number], records[number]
        if unit.records is not None:
            found = _record_texts(unit.records, unit.first, source, options, record)
        elif unit.row_group is not None:
            found = _row_texts(source, unit, options, record)
        else:
            found = _file_texts(source, options, record)
        for where, text in found:
            if not text:
                record.skip("empty", where)
                continue
            if 4 * len(text) > _LARGEST_DOCUMENT < len(text.encode("utf-8")):
                record.skip("larger than 4 GiB", where)
                continue
            digest = text_digest(text)
            held_out = fraction_of(digest) < options.held_out
            split = source.split or ("held_out" if held_out else "train")
            texts.append(Text(number, split, digest, text))
            record.documents += 1
    return texts, records


def _file_texts(
    source: Source, options: ReadingOptions, record: SourceRecord
) -> Iterator[tuple[str, str]]:
    try:
        raw = _contents(source, options, record)
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        record.skip("not UTF-8")
        return
    except UnreadableError as error:
        record.skip(str(error))
        return
    if options.separator is None:
        yield "", text
        return
    for number, part in enumerate(text.split(options.separator), 1):
        # What is left around separators is no document, and no loss either.
        if part.strip():
            yield f"part {number}", part.strip("\n")


def _contents(source: Source, options: ReadingOptions, record: SourceRecord) -> bytes:
    try:
        with open(source.path, "rb") as file:
            hashed = HashedFile(file)
            try:
                return _whole(hashed, options)
            finally:
                hashed.read_to_end()
                record.size, record.sha256 = hashed.size, hashed.sha256
    except DAMAGE as error:
        raise unreadable(error) from None


def _whole(file: HashedFile, options: ReadingOptions) -> bytes:
    parts: list[bytes] = []
    held = 0
    for part in decompressed(file):
        if b"\0" in part[: max(_BINARY_PROBE - held, 0)]:
            raise UnreadableError("binary")
        parts.append(part)
        held += len(part)
        if held > _LARGEST_DOCUMENT and options.separator is None:
            raise UnreadableError("larger than 4 GiB (cut it with --document_separator)")
    return b"".join(parts)


def _record_texts(
    records: Sequence[bytes | None],
    first: int,
    source: Source,
    options: ReadingOptions,
    outcome: SourceRecord,
) -> Iterator[tuple[str, str]]:
    noun = "line" if source.kind == "json_lines" else "record"
    for number, record in enumerate(records, first + 1):
        if noun == "line" and record is not None and not record.strip():
            continue
        where = f"{noun} {number}"
        try:
            yield where, text_of(record, options.text_field)
        except BadRecordError as error:
            outcome.skip(error.reason, f"{where}; {error.detail}" if error.detail else where)


def _row_texts(
    source: Source, unit: WorkUnit, options: ReadingOptions, record: SourceRecord
) -> Iterator[tuple[str, str]]:
    assert unit.row_group is not None
    number = unit.first
    try:
        values = texts_of_group(source.path, options.text_field, unit.row_group)
        for value in itertools.islice(values, unit.rows):
            number += 1
            if value is None:
                record.skip("null", f"row {number}")
                continue
            try:
                yield f"row {number}", value.decode("utf-8")
            except UnicodeDecodeError:
                record.skip("not UTF-8", f"row {number}")
    except UnreadableError as error:
        record.skip(str(error), f"row {number + 1}", unit.first + unit.rows - number)
