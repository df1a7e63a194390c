"""Measures what the early exit of stick-breaking attention saves on this machine.

    python scripts/measure_early_exit.py --json=FILE [--checkpoint=DIR --data=DIR]
        [--lengths=2048,4096 --tolerances=0.00390625,0.000244140625]

On random queries and keys, and on a trained model's held-out text: the fraction of blocks of keys
that are passed over, by the block sizes of an implementation, and the time against a tolerance of
0, both timed in turn. Rows of text are single documents, or parts of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
from absl import flags

from modbrick import command_line
from modbrick.analysis.early_exit import savings_on_text, single_documents
from modbrick.data import Dataset
from modbrick.errors import InputError
from modbrick.hardware import enable_compilation_cache
from modbrick.models import open_model
from modbrick.schema import json_text
from pallas_kernels.benchmarks.early_exit import times_on_random_data

CHECKPOINT = flags.DEFINE_string("checkpoint", None, "A run's or a model's directory.")
DATA = flags.DEFINE_string("data", None, "Directory of a prepared data set.")
LENGTHS = flags.DEFINE_list("lengths", ["2048", "4096"], "Tokens in a row.")
TOLERANCES = flags.DEFINE_list("tolerances", [str(2**-8), str(2**-12)], "Of the early exit.")
ROUNDS = flags.DEFINE_integer("rounds", 3, "Rounds of timing; the fastest counts.", lower_bound=1)
ROWS = flags.DEFINE_integer("rows", 2, "Rows of text for each length.", lower_bound=1)
JSON = flags.DEFINE_string("json", None, "File for the results.", required=True)


def main(argv: Sequence[str]) -> None:
    """Measures and writes the results."""
    del argv
    command_line.check_output(JSON)
    if bool(CHECKPOINT.value) != bool(DATA.value):
        raise InputError("a model needs text: name both --checkpoint=DIR and --data=DIR, or none")
    try:
        lengths = [int(length) for length in LENGTHS.value]
        tolerances = [float(tolerance) for tolerance in TOLERANCES.value]
    except ValueError as error:
        raise InputError(f"--lengths and --tolerances are lists of numbers: {error}") from None
    enable_compilation_cache()
    results: dict[str, Any] = {
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
        "rounds": ROUNDS.value,
        "random": [times_on_random_data(s, tolerances, ROUNDS.value) for s in lengths],
    }
    if CHECKPOINT.value and DATA.value:
        stored = open_model(CHECKPOINT.value)
        if stored.bricks:
            raise InputError(f"{stored.origin} holds bricks for a model: name the model")
        dataset, model, parameters = Dataset.open(DATA.value), stored.config, stored.read()
        texts = [single_documents(dataset, length, ROWS.value) for length in lengths]
        results["model"] = {
            "trained_steps": stored.step,
            "trained_context": model.context,
            "lengths": [
                savings_on_text(model, parameters, rows, tolerances, ROUNDS.value) for rows in texts
            ],
        }
    command_line.write_output(JSON, json_text(results, indent=1))


if __name__ == "__main__":
    command_line.run(main)
