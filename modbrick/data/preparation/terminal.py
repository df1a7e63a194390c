"""A preparation at the terminal: how far it is, and what came of it."""

from __future__ import annotations

import contextlib
import os
import sys
from collections import Counter
from collections.abc import Iterator

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table

from modbrick.data.manifest import SOURCES_FILE
from modbrick.data.preparation import preparation
from modbrick.data.preparation.duplicates import COPY_REASONS
from modbrick.data.preparation.preparation import PreparationConfig, Report
from modbrick.data.preparation.sources import Source

_SHOWN = 20


@contextlib.contextmanager
def preparation_progress() -> Iterator[preparation.Progress]:
    """Shows a bar for each stage on standard error; yields what `prepare` calls."""
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TextColumn("{task.fields[documents]} documents"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )
    stages: dict[str, TaskID] = {}

    def progress(stage: str, done: int, total: int, documents: int) -> None:
        bar.start()  # not before: a refusal is one line
        if stage not in stages:
            stages[stage] = bar.add_task(stage, total=total, documents=0)
        bar.update(stages[stage], completed=done, documents=documents)

    try:
        yield progress
    finally:
        if stages:
            bar.stop()


def print_report(report: Report, config: PreparationConfig) -> None:
    """Prints what a data set holds, what was left out of it, and how fast it was made."""
    console = Console(width=None if sys.stdout.isatty() else 100)

    def say(line: str) -> None:
        console.print(_printable(line, console.encoding), markup=False, soft_wrap=True)

    console.print(_table(report))
    for line in (*_copies(report), *_skipped(report, config), *_not_looked_at(report)):
        say(line)
    if not report.manifest.splits["held_out"]:
        say(f"no document is held out: {_remedy(report)}")
    identity = report.manifest.tokenizer
    rate = report.source_bytes / 1e6 / max(report.seconds, 1e-9)
    training = f", of it {report.training_seconds:.1f} s training the tokenizer"
    say(
        f"{config.output}: tokenizer {identity.name}, vocabulary {identity.vocabulary:,}; "
        f"{report.source_bytes / 1e6:.1f} MB in {report.seconds:.1f} s ({rate:.1f} MB/s)"
        + (training if config.tokenizer == "train" else "")
    )


def _copies(report: Report) -> Iterator[str]:
    """Yields how many documents were dropped because the data set has them already."""
    counts: Counter[str] = Counter()
    for summary in report.manifest.sources.values():
        counts.update({r: n for r, n in summary.skipped.items() if r in COPY_REASONS})
    for reason, count in sorted(counts.items()):
        yield f"dropped: {count:,} documents, each a {reason}"
    if report.listing.held_out:
        yield f"held out, and not trained on: {report.listing.held_out:,} files of --held_out_input"


def _skipped(report: Report, config: PreparationConfig) -> Iterator[str]:
    """Yields which files and records were skipped, and why."""
    skipped = [item for item in report.skipped if not item[1].startswith(COPY_REASONS)]
    if skipped:
        yield f"skipped: {sum(count for _, _, count in skipped):,} files or records"
    for path, reason, count in skipped[:_SHOWN]:
        yield f"  {path}: {reason} ({count:,})"
    if len(skipped) > _SHOWN:
        yield f"  ... all of them are in {config.output}/{SOURCES_FILE}"


def _not_looked_at(report: Report) -> Iterator[str]:
    """Yields what a search left aside."""
    listing = report.listing
    if objects := sum(source.kind == "text" for source in listing.sources if _is_json(source)):
        yield f"read as text, one document each: {objects:,} .json files that hold no records"
    if listing.left_aside:
        aside = ", ".join(f"{count:,} {ext}" for ext, count in sorted(listing.left_aside.items()))
        yield f"left aside, by extension: {aside}"
    for pattern, count in listing.excluded.items():
        yield f"excluded by {pattern}: {count:,} files or directories"
    if not report.cut:
        yield "--document_separator cut no file (for a line break, bash wants $'\\n')"
    for path, what in sorted(listing.passed_over.items())[:_SHOWN]:
        yield f"passed over: {path} ({what})"


def _is_json(source: Source) -> bool:
    return ".json" in os.path.basename(source.path).lower() and source.problem is None


def _remedy(report: Report) -> str:
    """Returns what helps if no document is held out."""
    documents = sum(d.documents for d in report.manifest.splits["train"].values())
    more = "raise --held_out, or" if documents > 1 else "it is one document; give more files,"
    return (
        f"{more} cut files into documents with --document_separator, or name text to be held out "
        "with --held_out_input; training with --config.evaluation.every=0 needs none"
    )


def _printable(line: str, encoding: str) -> str:
    """Returns a line in which what a terminal cannot show, or would obey, is escaped."""
    letters = (c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)
    return "".join(letters).encode(encoding, "backslashreplace").decode(encoding)


def _table(report: Report) -> Table:
    """Returns the counts of each domain of each split."""
    table = Table("split", "domain", "documents", "tokens", "bytes", "bytes/token", box=None)
    for split, domains in report.manifest.splits.items():
        for name, domain in domains.items():
            ratio = domain.bytes / max(domain.tokens, 1)
            counts = (domain.documents, domain.tokens, domain.bytes)
            table.add_row(split, name, *(f"{count:,}" for count in counts), f"{ratio:.2f}")
    return table
