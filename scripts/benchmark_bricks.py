"""Measures customized bricks on this machine: training one, and many in one batch.

    python scripts/benchmark_bricks.py --json=FILE [--rounds=5]

A LoRA of rank 8 on the attention projections of case B512 is trained in turn with the whole model;
and a batch in which every row has a LoRA of its own, on all projections of a dense model of that
size, runs in turn with one LoRA for all rows.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from absl import flags
from rich.console import Console

from modbrick import command_line
from modbrick.hardware import describe_machine
from modbrick.training.benchmark.bricks import mixing_cost, training_cost
from modbrick.training.benchmark.cases import CASES
from modbrick.training.benchmark.table import brick_costs

JSON = flags.DEFINE_string("json", None, "File for the results.")
ROUNDS = flags.DEFINE_integer("rounds", 5, "Rounds of each contender.", lower_bound=1)
STEPS = flags.DEFINE_integer("steps", 2, "Training steps in a round.", lower_bound=1)
CASE = flags.DEFINE_enum("case", "B512", list(CASES), "The model.")
ROWS = flags.DEFINE_integer("rows", 64, "Rows of the mixed batch, and LoRAs.", lower_bound=1)
LENGTH = flags.DEFINE_integer("length", 64, "Tokens in a row of the mixed batch.", lower_bound=1)


def main(argv: Sequence[str]) -> None:
    """Measures and reports."""
    del argv
    command_line.check_output(JSON)
    case = CASES[CASE.value]
    training = training_cost(case, rounds=ROUNDS.value, steps=STEPS.value)
    mixing = mixing_cost(case, rows=ROWS.value, length=LENGTH.value, rounds=ROUNDS.value)
    Console().print(brick_costs(training, mixing))
    record = {**describe_machine(), "training": training, "mixing": mixing}
    command_line.write_output(JSON, json.dumps(record, indent=2))


if __name__ == "__main__":
    command_line.run(main)
