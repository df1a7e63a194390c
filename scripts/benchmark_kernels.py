"""Judges the kernels: numerics, the compilers' own reports, and times, beside their peers.

    python scripts/benchmark_kernels.py --op=grouped_matmul|stickbreaking_attention --json=FILE
        [--parts=numerics,tpu,h100,gpu,cpu] [--cases=NAME,...] [--generations=v5p,v6e,v5e]

Everything takes an hour on a few cores: runs of some parts, cases or generations fill one file one
after another. Each replaces what it measured and keeps the rest, and the file says of each piece at
which commit, when and with what it was measured.

On any machine: every implementation against the reference (`numerics`, kernels in interpret mode).
With libtpu: the compile-time report of ours and of the peer for each TPU generation (`tpu`). With
the CUDA plugin: what ptxas makes of the kernels for an H100 (`h100`). On a GPU: times beside the
peers that can be imported (`gpu`). On a CPU: the XLA path beside the dense product, or beside the
S x S form (`cpu`). What cannot be measured here says so. docs/kernels.md explains the figures.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from modbrick import command_line
from modbrick.errors import InputError
from pallas_kernels.benchmarks import tables
from pallas_kernels.benchmarks.cases import cases_of
from pallas_kernels.benchmarks.environment import describe_environment
from pallas_kernels.benchmarks.parts import Benchmark
from pallas_kernels.benchmarks.results import PARTS, add_run, read_results
from pallas_kernels.benchmarks.static import OPS
from pallas_kernels.compile_report.chips import TPU_CHIPS

OP = flags.DEFINE_string("op", None, f"Which op: {' or '.join(OPS)}.", required=True)
JSON = flags.DEFINE_string("json", None, "File for the results; it keeps those of other runs.")
PARTS_FLAG = flags.DEFINE_list("parts", list(PARTS), "What to measure.")
CASES = flags.DEFINE_list("cases", None, "Which shapes; all by default.")
GENERATIONS = flags.DEFINE_list("generations", ["v5p", "v6e", "v5e"], "Which TPU generations.")
ROUNDS = flags.DEFINE_integer("rounds", 20, "Rounds of timing on a GPU.", lower_bound=1)
COMPILE_LIMIT = flags.DEFINE_integer(
    "compile_limit", 600, "Seconds that compiling a program may take, on average.", lower_bound=1
)
CPU_ROUNDS = flags.DEFINE_integer("cpu_rounds", 5, "Rounds of timing on a CPU.", lower_bound=1)


def main(argv: Sequence[str]) -> int:
    """Measures what was asked for, shows it, and writes it down."""
    del argv
    for flag, known in ((OP, OPS), (PARTS_FLAG, PARTS), (GENERATIONS, TPU_CHIPS)):
        command_line.check_known(flag, known)
    command_line.check_known(CASES, cases_of(OP.value), "case")
    command_line.check_output(JSON)
    try:
        earlier = read_results(Path(JSON.value), OP.value) if JSON.value else {}
    except ValueError as error:
        raise InputError(f"--json: {error}; name another file") from error
    cases = CASES.value or list(cases_of(OP.value))
    limits = ROUNDS.value, CPU_ROUNDS.value, COMPILE_LIMIT.value
    benchmark = Benchmark(OP.value, cases, GENERATIONS.value, *limits)
    where = describe_environment()
    with command_line.progress_bars() as bar:
        parts = [part for part in PARTS if part in PARTS_FLAG.value]
        run = {part: benchmark.measure(part, bar) for part in parts}
    results = add_run(earlier, OP.value, run, where)
    for table in tables.tables(results):
        command_line.print_table(table.title, table.columns, table.rows)
    command_line.write_output(JSON, json.dumps(results, indent=1))
    return 0


if __name__ == "__main__":
    command_line.run(main)
