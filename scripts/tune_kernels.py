"""Tries block sizes of a TPU kernel and says which are best.

    python scripts/tune_kernels.py --kernel=matmul|weights|feed_forward|feed_forward_gradient|
        attention --generation=v5p [--case=NAME] [--first=N] [--json=FILE]

On a TPU of that generation by the clock; elsewhere with libtpu, compiled ahead of time, by the
predicted time of the compile-time report. The results go to --json: every candidate with its time,
and the best one, which belongs into `GENERATIONS` of the op's tpu/block_sizes.py.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence

import jax
from absl import flags

from modbrick import command_line
from modbrick.errors import InputError
from pallas_kernels.benchmarks import tables, tuning
from pallas_kernels.benchmarks.cases import cases_of
from pallas_kernels.benchmarks.environment import describe_environment
from pallas_kernels.compile_report.chips import TPU_CHIPS
from pallas_kernels.compile_report.compilation import CompilerUnavailableError

KERNEL = flags.DEFINE_string(
    "kernel", None, f"Which kernel: {', '.join(tuning.KERNELS)}.", required=True
)
GENERATION = flags.DEFINE_string("generation", "v5p", "Which TPU generation.")
CASE = flags.DEFINE_string("case", None, "The shape; each kernel has one of its own.")
FIRST = flags.DEFINE_integer("first", None, "Try so many candidates only.", lower_bound=1)
ROUNDS = flags.DEFINE_integer("rounds", 10, "Rounds of timing on a TPU.", lower_bound=1)
JSON = flags.DEFINE_string("json", None, "File for the results.")


def main(argv: Sequence[str]) -> int:
    """Tries the candidates, shows them, and writes them down."""
    del argv
    command_line.check_known(KERNEL, tuning.KERNELS)
    command_line.check_known(GENERATION, TPU_CHIPS)
    op, usual, _ = tuning.KERNELS[KERNEL.value]
    command_line.check_known(CASE, cases_of(op), "case")
    command_line.check_output(JSON)

    case = CASE.value or usual
    tried = tuning.candidates(KERNEL.value)[: FIRST.value]
    on_chip = jax.default_backend() == "tpu"
    with command_line.progress_bars() as bar:
        advance = bar(f"{len(tried)} candidates", len(tried))
        try:
            if on_chip:
                trials = tuning.measure(KERNEL.value, tried, case, ROUNDS.value, advance)
            else:
                trials = tuning.predict(KERNEL.value, tried, GENERATION.value, case, advance)
            best = tuning.best(trials)
        except (CompilerUnavailableError, ValueError) as error:
            raise InputError(str(error)) from error

    kind = "measured" if on_chip else "predicted"
    table = tables.trial_table(f"{KERNEL.value} on {GENERATION.value}", kind, trials, best)
    command_line.print_table(table.title, table.columns, table.rows)
    results = {
        **describe_environment(),
        "kernel": KERNEL.value,
        "generation": GENERATION.value,
        "case": case,
        "seconds_are": kind,
        "best": dataclasses.asdict(best),
        "trials": [dataclasses.asdict(trial) for trial in trials],
    }
    command_line.write_output(JSON, json.dumps(results, indent=1))
    return 0


if __name__ == "__main__":
    command_line.run(main)
