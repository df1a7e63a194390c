"""Cuts the reading of source files into work units that any number of processes may share.

The cut follows from the sources alone, so the outcome does not depend on who does it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from modbrick.data.preparation.formats.json_values import split_lines, split_values
from modbrick.data.preparation.formats.parquet import rows_of_groups
from modbrick.data.preparation.formats.streams import (
    DAMAGE,
    HashedFile,
    UnreadableError,
    decompressed,
    unreadable,
)
from modbrick.data.preparation.sources import Source

UNIT_BYTES = 4 << 20
_BYTES_OF_ANY = 64  # that a record takes at least, blank lines too


@dataclass(frozen=True)
class ReadingOptions:
    """Options for finding texts in sources and assigning them to splits.

    Attributes:
      text_field: field or column of records; `doc.text` is also a field within another.
      held_out: share of the documents, by a hash of their text.
      separator: text files are cut into documents at this string; None: a file is a document.
    """

    text_field: str = "text"
    held_out: float = 0.05
    separator: str | None = None


@dataclass
class SourceRecord:
    """Outcome of (part of) a source file.

    Attributes:
      size, sha256: of the file.
      documents: used.
      skipped: how much was not used, by reason.
      first: where the first of them is, by reason; and, after a semicolon, what is known of it.
    """

    size: int = 0
    sha256: str = ""
    documents: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)

    def skip(self, reason: str, where: str = "", count: int = 1) -> None:
        """Counts what is not used."""
        self.skipped[reason] += count
        if where:
            self.first.setdefault(reason, where)

    def merge(self, other: SourceRecord) -> None:
        """Adds the outcome of another, later part of the same file."""
        self.size += other.size
        self.sha256 = self.sha256 or other.sha256
        self.documents += other.documents
        self.skipped += other.skipped
        self.first = {**other.first, **self.first}

    def reasons(self) -> dict[str, int]:
        """Returns how much was not used, by reason with where the first of them is."""
        return {self._located(r): count for r, count in sorted(self.skipped.items())}

    def _located(self, reason: str) -> str:
        where, _, detail = self.first.get(reason, "").partition("; ")
        return f"{reason} ({detail}{'; ' * bool(detail)}first: {where})" if where else reason


@dataclass(frozen=True)
class WorkUnit:
    """Whole text files; or some records, or one row group, of one file of records.

    Attributes:
      sources: numbers of the source files.
      records: of a JSON file, from number `first` on; None: one that is too long.
      row_group: of a Parquet file, whose first row is `first`.
      rows: to be read of the row group.
      advance: bytes of source files done with this work unit, for progress.
    """

    sources: tuple[int, ...]
    records: tuple[bytes | None, ...] | None = None
    row_group: int | None = None
    rows: int = 0
    first: int = 0
    advance: int = 0


def cut_into_work_units(
    sources: Sequence[Source], options: ReadingOptions, records: Mapping[int, SourceRecord]
) -> Generator[WorkUnit]:
    """Yields the work units of all sources in order.

    Files of records are hashed on the way: size and hash are put into `records`, and so is what
    cannot be read of them.
    """
    group: list[int] = []
    size = 0
    for number, source in enumerate(sources):
        of_text = source.kind == "text" and source.problem is None
        if of_text:
            group.append(number)
            size += source.size
        if group and (not of_text or size >= UNIT_BYTES):
            yield WorkUnit(tuple(group), advance=size)
            group, size = [], 0
        if source.problem is not None:
            records[number].skip(source.problem)
        elif not of_text:
            yield from _units_of_records(number, source, options, records[number])
    if group:
        yield WorkUnit(tuple(group), advance=size)


def _units_of_records(
    number: int, source: Source, options: ReadingOptions, record: SourceRecord
) -> Iterator[WorkUnit]:
    done = 0
    cut = _row_groups if source.kind == "parquet" else _parts
    try:
        with open(source.path, "rb") as raw:
            file = HashedFile(raw)
            try:
                for unit in cut(number, source, options, file):
                    done += unit.advance
                    yield unit
            except UnreadableError as error:
                record.skip(str(error))
            except DAMAGE as error:
                record.skip(str(unreadable(error)))
            file.read_to_end()
            record.size, record.sha256 = file.size, file.sha256
    except OSError as error:
        record.skip(str(unreadable(error)))
    if done < source.size:
        yield WorkUnit((), advance=source.size - done)


def _row_groups(
    number: int, source: Source, options: ReadingOptions, _: HashedFile
) -> Iterator[WorkUnit]:
    groups = rows_of_groups(source.path, options.text_field)
    first = done = 0
    for group, rows in enumerate(groups):
        upto = source.size * (first + rows) // max(sum(groups), 1)
        yield WorkUnit((number,), None, group, rows, first, upto - done)
        first, done = first + rows, upto


def _parts(number: int, source: Source, _: ReadingOptions, file: HashedFile) -> Iterator[WorkUnit]:
    split = split_lines if source.kind == "json_lines" else split_values
    records = split(decompressed(file))
    some: list[bytes | None] = []
    first = size = done = 0
    damage: Exception | None = None
    while damage is None:
        try:
            record = next(records)
        except (StopIteration, UnreadableError, *DAMAGE) as error:
            damage = error
        else:
            some.append(record)
            size += len(record or b"") + _BYTES_OF_ANY
        if some and (size >= UNIT_BYTES or damage is not None):
            yield WorkUnit((number,), tuple(some), None, 0, first, file.size - done)
            first, size, done = first + len(some), 0, file.size
            some = []
    if not isinstance(damage, StopIteration):
        raise damage
