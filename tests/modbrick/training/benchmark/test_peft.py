"""The benchmark beside peft, on a model that takes no time; peft is a driver that says numbers."""

from __future__ import annotations

import sys

import pytest

from modbrick.training.benchmark.cases import Case
from modbrick.training.benchmark.peft import peft_cost

pytestmark = pytest.mark.usefixtures("quick_compilation")
TINY = Case(32, 16, 1, 2, 16, 16, 8, 2, 2, batch=2, sequence=8)
DRIVER = """
import json, sys
case = json.loads(sys.argv[1])
for line in sys.stdin:
    steps = json.loads(line)["steps"]
    print(json.dumps({"seconds": 0.5 * steps, "peak_memory_bytes": case["width"]}), flush=True)
"""


def test_both_train_in_turn() -> None:
    found = peft_cost(TINY, [sys.executable, "-c", DRIVER], rounds=1, steps=1)
    assert found["seconds_per_step"]["peft"] == 0.5
    assert found["memory_bytes"]["peft"] == 16
    ours = found["seconds_per_step"]["modbrick"]
    assert found["time_ratio"] == pytest.approx(ours / 0.5)
    assert found["memory_bytes"]["modbrick"] > 0
