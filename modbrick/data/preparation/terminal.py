"""A preparation at the terminal: how far it is, and what came of it."""

from __future__ import annotations

import contextlib
import sys
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

from modbrick.data.preparation import preparation
from modbrick.data.preparation.preparation import PreparationConfig, Report

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
        console.print(line, markup=False, soft_wrap=True)

    console.print(_table(report))
    if report.skipped:
        total = sum(count for _, _, count in report.skipped)
        say(f"skipped: {total:,} files or records")
        for path, reason, count in report.skipped[:_SHOWN]:
            say(f"  {path}: {reason} ({count:,})")
        if len(report.skipped) > _SHOWN:
            say(f"  ... all of them are in {config.output}/sources.jsonl")
    if report.left_aside:
        aside = ", ".join(f"{count:,} {ext}" for ext, count in sorted(report.left_aside.items()))
        say(f"left aside, by extension: {aside}")
    if not report.manifest.splits["held_out"]:
        say("no document is held out: evaluation needs a larger --held_out or --held_out_input")
    identity = report.manifest.tokenizer
    rate = report.source_bytes / 1e6 / max(report.seconds, 1e-9)
    training = f", of it {report.training_seconds:.1f} s training the tokenizer"
    say(
        f"{config.output}: tokenizer {identity.name}, vocabulary {identity.vocabulary:,}; "
        f"{report.source_bytes / 1e6:.1f} MB in {report.seconds:.1f} s ({rate:.1f} MB/s)"
        + (training if config.tokenizer == "train" else "")
    )


def _table(report: Report) -> Table:
    """Returns the counts of each domain of each split."""
    table = Table("split", "domain", "documents", "tokens", "bytes", "bytes/token", box=None)
    for split, domains in report.manifest.splits.items():
        for name, domain in domains.items():
            ratio = domain.bytes / max(domain.tokens, 1)
            counts = (domain.documents, domain.tokens, domain.bytes)
            table.add_row(split, name, *(f"{count:,}" for count in counts), f"{ratio:.2f}")
    return table
