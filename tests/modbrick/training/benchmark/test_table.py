"""The table of a benchmark."""

from __future__ import annotations

import io
from typing import Any

from rich.console import Console

from modbrick.training.benchmark.table import brick_costs, results_table

FIGURES = {
    "tokens_per_second": 1234.4,
    "share_of_limit": 0.25,
    "share_of_limit_without_optimizer": 0.5,
    "optimizer_share_of_step": 0.125,
    "dense_gflops": 77.0,
    "peak_memory_bytes": 3 * 2**30,
    "compile_seconds": 9.0,
}
ORIGINAL = {"tokens_per_second": 617.2, "peak_memory_bytes": 2**30}


def shown(results: dict[str, Any]) -> str:
    out = io.StringIO()
    Console(file=out, width=120).print(results_table(results))
    return out.getvalue()


def test_cases_are_columns_and_the_original_is_shown_where_it_ran() -> None:
    alone = shown({"A": FIGURES, "B": FIGURES})
    assert alone.count("1,234") == alone.count("12.5%") == 2
    assert "original" not in alone
    beside = shown({"A": {**FIGURES, "original": ORIGINAL, "speedup": 2.0}})
    assert "617" in beside
    assert "2.00" in beside


def test_what_was_measured_of_bricks_is_shown() -> None:
    plugging = {
        "bricks": 1000,
        "seconds": {"one": 0.25, "many": 0.5},
        "read_bytes": 2**30,
        "time_ratio": 2.0,
    }
    out = io.StringIO()
    Console(file=out, width=120).print(brick_costs({"plugging": plugging}))
    shown = out.getvalue()
    assert "one of a library of 1000" in shown
    assert "1.00000" in shown
    assert "training" not in shown
