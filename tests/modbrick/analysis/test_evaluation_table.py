"""The table of an evaluation."""

from __future__ import annotations

import io

from rich.console import Console

from modbrick.analysis.evaluation_table import evaluation_table
from modbrick.training.evaluation import DomainResult, EvaluationResult


def test_each_domain_has_a_row_and_all_have_one() -> None:
    code, all_of_them = (DomainResult(n, n + 1, n + 2, 1000, 2000, 3, 1000, 3) for n in (1.5, 2.5))
    out = io.StringIO()
    Console(file=out, width=120).print(
        evaluation_table(EvaluationResult(all_of_them, {"code": code}, {}))
    )
    rows = [line for line in out.getvalue().splitlines() if "3" in line]
    assert [row.split("│")[1].strip() for row in rows] == ["code", "all"]
    for value in ("1.5000", "2.50", "3.5000", "1,000", "2,000"):
        assert value in rows[0]
