"""Measures customized bricks on this machine: training one, many in one batch, one out of many.

    python scripts/benchmark_bricks.py --json=FILE [--rounds=5] [--parts=plugging --parts=peft]

- training: a LoRA of rank 8 on the attention projections of B512, in turn with the whole model.
- mixing: a batch in which every row has a LoRA of its own, on all projections of a dense model of
  that size, in turn with one LoRA for all rows.
- plugging: a LoRA out of a library of a thousand into a running model, in turn with one out of a
  library that has no other.
- peft: a LoRA on a Llama of that size, here and with the package peft, in turn; where
  MODBRICK_PEFT_PYTHON names a Python with peft, torch and transformers.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from rich.console import Console

from modbrick import command_line
from modbrick.hardware import describe_machine
from modbrick.schema import json_text
from modbrick.training.benchmark.bricks import mixing_cost, training_cost
from modbrick.training.benchmark.cases import CASES
from modbrick.training.benchmark.library import plugging_cost
from modbrick.training.benchmark.peft import peft_cost
from modbrick.training.benchmark.table import brick_costs

ALL = ["training", "mixing", "plugging", "peft"]
JSON = flags.DEFINE_string("json", None, "File for the results.")
PARTS = flags.DEFINE_multi_enum("parts", ALL, ALL, "What to measure; may be given several times.")
ROUNDS = flags.DEFINE_integer("rounds", 5, "Rounds of each contender.", lower_bound=1)
STEPS = flags.DEFINE_integer("steps", 2, "Training steps in a round.", lower_bound=1)
CASE = flags.DEFINE_enum("case", "B512", list(CASES), "The model.")
ROWS = flags.DEFINE_integer("rows", 64, "Rows of the mixed batch, and LoRAs.", lower_bound=1)
LENGTH = flags.DEFINE_integer("length", 64, "Tokens in a row of the mixed batch.", lower_bound=1)
BRICKS = flags.DEFINE_integer("bricks", 1000, "Bricks in the library.", lower_bound=1)


def main(argv: Sequence[str]) -> None:
    """Measures and reports."""
    del argv
    command_line.check_output(JSON)
    console, case, rounds, steps = Console(), CASES[CASE.value], ROUNDS.value, STEPS.value
    mixing = functools.partial(mixing_cost, rows=ROWS.value, length=LENGTH.value)
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "training": lambda: training_cost(case, rounds=rounds, steps=steps),
        "mixing": lambda: mixing(case, rounds=rounds),
        "plugging": lambda: plugging_cost(case, bricks=BRICKS.value, rounds=rounds),
    }
    if python := os.environ.get("MODBRICK_PEFT_PYTHON"):
        driver = [python, str(Path(__file__).with_name("benchmark_peft.py"))]
        parts["peft"] = lambda: peft_cost(case, driver, rounds=rounds, steps=steps)
    elif "peft" in PARTS.value:
        console.print("peft is left out: MODBRICK_PEFT_PYTHON names no Python that has it")
    found = {name: measure() for name, measure in parts.items() if name in PARTS.value}
    console.print(brick_costs(found))
    command_line.write_output(JSON, json_text({**describe_machine(), **found}, indent=2))


if __name__ == "__main__":
    command_line.run(main)
