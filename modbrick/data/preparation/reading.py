"""Texts from the source files of a work unit."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from modbrick.data.manifest import Split
from modbrick.data.preparation.sources import Source
from modbrick.data.preparation.work_units import ReadingOptions, SourceRecord, WorkUnit, damaged

_LARGEST_DOCUMENT = 0xFFFF_FFFF  # sizes are kept as uint32
_BINARY_PROBE = 8192


@dataclass(frozen=True)
class Text:
    """A document before it is encoded; `fraction` is its hash as a number in [0, 1)."""

    source: int
    split: Split
    fraction: float
    text: str


def read_work_unit(
    unit: WorkUnit, sources: Sequence[Source], options: ReadingOptions
) -> tuple[list[Text], dict[int, SourceRecord]]:
    """Returns the texts of a work unit, and what became of its sources."""
    records = {number: SourceRecord() for number in unit.sources}
    texts: list[Text] = []
    for number in unit.sources:
        source, record = sources[number], records[number]
        if unit.lines is not None:
            found: Iterator[tuple[int | None, str]] = _json_texts(
                unit.lines, unit.first_row, options, record
            )
        elif unit.row_group is not None:
            found = _parquet_texts(source, unit, options, record)
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
    source: Source, unit: WorkUnit, options: ReadingOptions, record: SourceRecord
) -> Iterator[tuple[int | None, str]]:
    import pyarrow  # slow to import, and rarely needed
    import pyarrow.parquet

    row = unit.first_row
    try:
        with pyarrow.parquet.ParquetFile(source.path) as file:
            for batch in file.iter_batches(
                batch_size=1024, row_groups=[unit.row_group], columns=[options.text_field]
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
        raise damaged(source, error) from None
