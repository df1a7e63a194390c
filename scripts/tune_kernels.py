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
from pathlib import Path

import jax
from absl import flags
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from modbrick import command_line
from modbrick.errors import InputError
from modbrick.schema import nearest
from pallas_kernels.benchmarks import tuning
from pallas_kernels.benchmarks.cases import EXPERT_CASES, STATIC_ATTENTION_CASES
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
    for flag, value, known in (
        ("kernel", KERNEL.value, tuple(tuning.KERNELS)),
        ("generation", GENERATION.value, tuple(TPU_CHIPS)),
    ):
        if value not in known:
            raise InputError(f"--{flag}: unknown value {value!r}; {nearest(value, known)}")
    op, usual, _ = tuning.KERNELS[KERNEL.value]
    cases = tuple(EXPERT_CASES if op == "grouped_matmul" else STATIC_ATTENTION_CASES)
    case = CASE.value or usual
    if case not in cases:
        raise InputError(f"--case: unknown case {case!r}; {nearest(case, cases)}")
    command_line.check_output(JSON)

    tried = tuning.candidates(KERNEL.value)[: FIRST.value]
    on_chip = jax.default_backend() == "tpu"
    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task(f"{len(tried)} candidates", total=len(tried))

        def advance() -> None:
            progress.advance(task)

        try:
            if on_chip:
                trials = tuning.measure(KERNEL.value, tried, case, ROUNDS.value, advance)
            else:
                trials = tuning.predict(KERNEL.value, tried, GENERATION.value, case, advance)
            best = tuning.best(trials)
        except (CompilerUnavailableError, ValueError) as error:
            raise InputError(str(error)) from error

    seconds = "measured us" if on_chip else "predicted us"
    table = Table("block sizes", seconds, "remark", title=f"{KERNEL.value} on {GENERATION.value}")
    for trial in sorted(trials, key=lambda t: (t.seconds is None, t.seconds)):
        time = "refused" if trial.seconds is None else f"{trial.seconds * 1e6:,.1f}"
        mark = " (best)" if trial is best else ""
        table.add_row(json.dumps(trial.sizes) + mark, time, trial.remark)
    Console().print(table)
    if JSON.value:
        results = {
            **describe_environment(),
            "kernel": KERNEL.value,
            "generation": GENERATION.value,
            "case": case,
            "seconds_are": "measured" if on_chip else "predicted",
            "best": dataclasses.asdict(best),
            "trials": [dataclasses.asdict(trial) for trial in trials],
        }
        Path(JSON.value).write_text(json.dumps(results, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    command_line.run(main)
