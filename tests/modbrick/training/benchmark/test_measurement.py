"""The benchmark of training on a case that takes no time, beside another code."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest

from modbrick.analysis.summary import summarise
from modbrick.errors import InputError
from modbrick.execution import ExecutionConfig
from modbrick.hardware import measured_flops
from modbrick.training.benchmark import measurement
from modbrick.training.benchmark.cases import CASES, Case
from modbrick.training.benchmark.measurement import measure
from modbrick.training.benchmark.other import OtherProcess

pytestmark = pytest.mark.usefixtures("quick_compilation")

PLAIN = ExecutionConfig(attention="reference", dispatch="reference")
TINY = Case(32, 16, 1, 2, 16, 16, 8, 2, 2, batch=2, sequence=8)
DRIVER = """
import json, sys
case = json.loads(sys.argv[1])
for line in sys.stdin:
    steps = json.loads(line)["steps"]
    answer = {"seconds": 0.5 * steps} if steps else {"peak_memory_bytes": case["width"]}
    print(json.dumps(answer), flush=True)
"""


def small_products(size: int, repeats: int) -> float:
    """The rate of products of matrices that take no time either."""
    return measured_flops(size // 16, repeats=repeats)


def test_figures_belong_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measurement, "measured_flops", small_products)
    found = measure(TINY, rounds=1, steps=1, execution=PLAIN, other=[sys.executable, "-c", DRIVER])
    assert found["parameters"] == summarise(TINY.model()).total
    assert found["tokens_per_second"] == pytest.approx(16 / found["seconds_per_step"])
    rate = found["useful_gflop_per_step"] / found["seconds_per_step"] / found["dense_gflops"]
    assert found["share_of_limit"] == pytest.approx(rate)
    assert len(found["rounds"]["seconds"]) == 1
    assert all(math.isfinite(x) for x in found.values() if isinstance(x, float))
    assert found["original"]["tokens_per_second"] == 16 / 0.5
    assert found["original"]["peak_memory_bytes"] == 16
    assert found["speedup"] > 0


def test_a_code_that_does_not_run_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=str(tmp_path)):
        OtherProcess([sys.executable, "-c", "", str(tmp_path)], TINY)


def test_cases_fill_their_batches() -> None:
    assert {name: case.tokens for name, case in CASES.items()} == {
        "A": 2048,
        "B512": 2048,
        "B1024": 2048,
    }
