"""Tells where the wall time of a run went, from its own log: goodput.

    python scripts/report_goodput.py --workdir=DIR [--json=FILE] [--picture=FILE.png]

Goodput is the share of the time, from the first start to the last record, that went into steps
that were kept. The last line of standard output is one JSON object. A run may be under way.
"""

from __future__ import annotations

from collections.abc import Sequence

from absl import flags
from rich.console import Console
from rich.table import Table

from modbrick import command_line
from modbrick.analysis.goodput import PARTS, Goodput, goodput
from modbrick.analysis.pictures import draw_goodput
from modbrick.errors import InputError
from modbrick.paths import expanded
from modbrick.schema import json_text
from modbrick.training.observe.timeline import read_timeline

WORKDIR = flags.DEFINE_string("workdir", None, "Directory of a run, local or remote.")
JSON = flags.DEFINE_string("json", None, "File for the result too.")
PICTURE = flags.DEFINE_string("picture", None, "PNG file for a picture of it, local.")


def main(argv: Sequence[str]) -> int:
    """Reports on one run."""
    del argv
    if not WORKDIR.value:
        raise InputError("name the directory of a run: --workdir=DIR")
    command_line.check_output(JSON, remote=True)
    command_line.check_output(PICTURE, endings=(".png",))
    report = goodput(read_timeline(WORKDIR.value), WORKDIR.value)
    Console(stderr=True).print(table(report))
    record = json_text(report.to_mapping())
    print(record)
    command_line.write_output(JSON, record)
    if PICTURE.value:
        with command_line.writing(PICTURE):
            draw_goodput(report, expanded(PICTURE.value))
    return 0


def table(report: Goodput) -> Table:
    """Returns the parts of the wall time, for people."""
    each = report.seconds_per_interruption
    cost = "" if each is None else f", {each:,.1f} s each"
    rows = Table(
        title=f"goodput {report.share:.1%}",
        caption=f"{report.steps:,} steps kept, {report.lost_steps:,} lost; "
        f"{report.interruptions} interruptions{cost}",
    )
    rows.add_column("part of the wall time")
    for name in ("seconds", "share"):
        rows.add_column(name, justify="right")
    for part, meaning in PARTS.items():
        seconds = report.seconds[part]
        share = seconds / report.total if report.total else 0.0
        rows.add_row(meaning, f"{seconds:,.1f}", f"{share:.1%}")
    rows.add_section()
    rows.add_row("all", f"{report.total:,.1f}", "100.0%")
    return rows


if __name__ == "__main__":
    command_line.run(main)
