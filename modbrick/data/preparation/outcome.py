"""What became of the source files: refusals, and what a data set keeps of it."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Mapping, Sequence

from modbrick.data.manifest import SourceSummary
from modbrick.data.preparation.formats.streams import DAMAGED
from modbrick.data.preparation.reading import read_work_unit
from modbrick.data.preparation.sources import Source
from modbrick.data.preparation.work_units import (
    ReadingOptions,
    SourceRecord,
    WorkUnit,
    cut_into_work_units,
)
from modbrick.errors import InputError

# A row group can be most of a Parquet file.
_ROWS = 1024


def require_usable(sources: Sequence[Source], options: ReadingOptions) -> None:
    """Looks at the first records of every file of records that a user named.

    Raises:
      InputError: a file cannot be read, or none of its first records has the text that was asked
        for.
    """
    for source in sources:
        if not source.named or source.kind == "text":
            continue
        unit, record = _looked_at(source, options)
        for reason in record.reasons():
            if not unit.sources or DAMAGED in reason:
                remedy = "; mend it or leave it out of --input" if DAMAGED in reason else ""
                raise InputError(f"{source.path}: {reason}{remedy}")
        if record.skipped and not record.documents:
            reason, count = Counter(record.reasons()).most_common(1)[0]
            whole = unit.advance >= source.size and unit.rows <= _ROWS
            if whole or reason.startswith("no field"):
                raise InputError(
                    f"{source.path}: none of its records could be used ({count} of them: "
                    f"{reason}); check --text_field, or leave the file out"
                )


def _looked_at(source: Source, options: ReadingOptions) -> tuple[WorkUnit, SourceRecord]:
    """Returns the first work unit of a file, without sources if it has none, and its outcome."""
    record = SourceRecord()
    units = cut_into_work_units([source], options, {0: record})
    # Of JSON, asking for what comes after it tells of damage in it.
    count = 1 if source.kind == "parquet" else 2
    unit, *_ = [*itertools.islice(units, count), WorkUnit(())]
    units.close()
    if unit.sources:
        first = dataclasses.replace(unit, rows=min(unit.rows, _ROWS))
        record.merge(read_work_unit(first, [source], options)[1][0])
    return unit, record


def require_documents(
    sources: Sequence[Source], records: Mapping[int, SourceRecord], training: int
) -> None:
    """Checks that there is something to train on.

    Args:
      sources: the files.
      records: what became of them.
      training: documents of the training split.

    Raises:
      InputError: says what became of the documents.
    """
    reasons = sum((record.skipped for record in records.values()), Counter())
    listed = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common(3))
    if not any(record.documents for record in records.values()):
        raise InputError(
            f"no document could be used in {len(sources)} files ({listed or 'no records'}); check "
            "--input"
        )
    if training == 0 and any(source.split is None for source in sources):
        raise InputError(
            f"no document is left to train on ({listed or 'all are held out'}); give more files"
        )


def summarise(
    sources: Sequence[Source], records: Mapping[int, SourceRecord]
) -> tuple[dict[str, SourceSummary], str]:
    """Returns a summary of each domain, and a line of JSON for each source file."""
    lines: dict[str, list[str]] = {}
    totals: dict[str, SourceRecord] = {}
    for number, source in enumerate(sources):
        record = records[number]
        line = {
            "domain": source.domain,
            "path": source.name,
            "bytes": record.size,
            "sha256": record.sha256,
            "documents": record.documents,
            "skipped": dict(sorted(record.skipped.items())),
            "first": dict(sorted(record.first.items())),
        }
        lines.setdefault(source.domain, []).append(_json_line(line))
        totals.setdefault(source.domain, SourceRecord()).merge(record)
    summaries = {
        domain: SourceSummary(
            len(lines[domain]),
            total.size,
            hashlib.sha256("".join(lines[domain]).encode("utf-8")).hexdigest(),
            dict(sorted(total.skipped.items())),
        )
        for domain, total in totals.items()
    }
    return summaries, "".join(line for domain in lines.values() for line in domain)


def _json_line(line: Mapping[str, object]) -> str:
    text = json.dumps(line, ensure_ascii=False)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:  # a file name of bytes that are no text
        text = json.dumps(line)
    return f"{text}\n"
