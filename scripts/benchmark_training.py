"""Measures training on this machine: tokens per second, share of the machine's limit, memory.

    python scripts/benchmark_training.py --json=FILE [--cases=A,B512,B1024] [--rounds=5]
        [--original=DIR --original_python=PYTHON]

The limit is the dense float32 matmul rate, measured between the steps of the same run; useful
operations are those of active parameters and attention (`modbrick.flops`). With --original, the
original PyTorch ModuleFormer code in DIR is trained in turn with ours, under a Python that has
torch and transformers. Fresh random data in every step; medians over rounds.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags
from rich.console import Console

from modbrick import command_line
from modbrick.errors import InputError
from modbrick.execution import ExecutionConfig
from modbrick.hardware import describe_machine
from modbrick.schema import json_text
from modbrick.training.benchmark.cases import CASES
from modbrick.training.benchmark.measurement import measure
from modbrick.training.benchmark.table import results_table

JSON = flags.DEFINE_string("json", None, "File for the results.")
CASES_FLAG = flags.DEFINE_list("cases", ["A", "B512", "B1024"], "Which cases to run.")
ROUNDS = flags.DEFINE_integer("rounds", 5, "Rounds of steps of each contender.", lower_bound=1)
STEPS = flags.DEFINE_integer("steps", 2, "Steps in a round.", lower_bound=1)
UNROLL = flags.DEFINE_integer("unroll", 1, "Layers unrolled in the scan.", lower_bound=1)
ORIGINAL = flags.DEFINE_string("original", None, "Directory of the original PyTorch package.")
ORIGINAL_PYTHON = flags.DEFINE_string("original_python", None, "Python with torch, for --original.")
_CASE = flags.DEFINE_string("one_case", None, "Run one case in this process; prints JSON.")


def main(argv: Sequence[str]) -> int:
    """Runs the cases and reports."""
    del argv
    for flag in (CASES_FLAG, _CASE):
        command_line.check_known(flag, CASES, "case")
    if (ORIGINAL.value is None) != (ORIGINAL_PYTHON.value is None):
        raise InputError("--original and --original_python go together")
    command_line.check_output(JSON)
    if _CASE.value:
        print(json_text(one_case(_CASE.value)))
        return 0
    # Each case in a process of its own, so that peak memory is its own.
    results = {name: in_own_process(name) for name in CASES_FLAG.value}
    Console().print(results_table(results))
    command_line.write_output(JSON, json_text({**describe_machine(), "cases": results}, indent=2))
    return 0


def one_case(name: str) -> dict[str, Any]:
    """Measures one case, in turn with the original if that is asked for."""
    driver = str(Path(__file__).with_name("benchmark_original.py"))
    original = [str(ORIGINAL_PYTHON.value), driver, ORIGINAL.value] if ORIGINAL.value else None
    execution = ExecutionConfig(unroll=UNROLL.value)
    return measure(
        CASES[name], rounds=ROUNDS.value, steps=STEPS.value, execution=execution, other=original
    )


def in_own_process(name: str) -> dict[str, Any]:
    """Runs one case in a process of its own."""
    command = [sys.executable, __file__, *sys.argv[1:], f"--one_case={name}"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise InputError(f"case {name} failed with exit status {done.returncode}; see its message")
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    command_line.run(main)
