"""Writes what the kernel benchmarks measured into the tables of docs/kernels.md.

    python -m tools.kernel_tables [--check]

The figures are those of docs/figures/kernels_*.json, which scripts/benchmark_kernels.py fills.
--check writes nothing, and says whether a table is not what the figures say.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pallas_kernels.benchmarks.static import OPS
from pallas_kernels.benchmarks.tables import Table, tables

ROOT = Path(__file__).resolve().parents[1]
PAGE, FIGURES = ROOT / "docs/kernels.md", ROOT / "docs/figures"


def markdown(table: Table) -> str:
    """A table under its title, as it stands on the page."""
    lines = [table.columns, ("---",) * len(table.columns), *table.rows]
    rows = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return f"**{table.title}**\n\n{rows}\n"


def with_tables(page: str, results: Mapping[str, Any]) -> str:
    """The page with the tables of one operation, in the section of its name.

    Raises:
        ValueError: the page has no such section, or no place for one of the tables.
    """
    section = re.search(rf"(?ms)^### {results['op']}\n.*?(?=^###? |\Z)", page)
    if section is None:
        raise ValueError(f"the page has no section {results['op']}")
    text = section.group()
    for table in tables(dict(results)):
        place = rf"(?m)^\*\*{re.escape(table.title)}\*\*\n\n(?:\|.*\n)+"
        written = markdown(table)
        text, count = re.subn(place, lambda _: written, text)  # noqa: B023
        if count != 1:
            raise ValueError(f"{results['op']} has {count} places for the table {table.title!r}")
    return page[: section.start()] + text + page[section.end() :]


def main() -> int:
    """Writes the tables; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="Write nothing; compare.")
    check = parser.parse_args().check
    before = page = PAGE.read_text(encoding="utf-8")
    for op in OPS:
        page = with_tables(page, json.loads((FIGURES / f"kernels_{op}.json").read_text()))
    if check:
        print("the tables are those of the figures" if page == before else "the tables differ")
        return int(page != before)
    PAGE.write_text(page, encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
