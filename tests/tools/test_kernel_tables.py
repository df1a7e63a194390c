"""The tables of the page on kernels are those that the figures make."""

from __future__ import annotations

import json

import pytest

from pallas_kernels.benchmarks.static import OPS
from pallas_kernels.benchmarks.tables import Table
from tools.kernel_tables import FIGURES, PAGE, markdown, with_tables


def test_a_table_is_written_under_its_title() -> None:
    table = Table("Times", ("case", "us"), (("a", "1"), ("b", "2")))
    rows = "| case | us |\n| --- | --- |\n| a | 1 |\n| b | 2 |\n"
    assert markdown(table) == f"**Times**\n\n{rows}"


@pytest.mark.parametrize("op", OPS)
def test_the_page_shows_the_figures(op: str) -> None:
    results = json.loads((FIGURES / f"kernels_{op}.json").read_text())
    page = PAGE.read_text(encoding="utf-8")
    assert with_tables(page, results) == page
    results["numerics"]["xla"]["float32"]["error"] = 1.0
    changed = with_tables(page, results)
    assert changed != page
    assert "| xla | float32 | compiled | 1.0e+00 |" in changed
    with pytest.raises(ValueError, match=f"no section {op}"):
        with_tables("", results)
