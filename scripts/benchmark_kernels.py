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
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
from absl import flags
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from modbrick import command_line
from modbrick.errors import InputError
from modbrick.schema import nearest
from pallas_kernels.benchmarks import tables
from pallas_kernels.benchmarks.cases import EXPERT_CASES, STATIC_ATTENTION_CASES
from pallas_kernels.benchmarks.cpu import LENGTHS, cpu_attention, cpu_experts
from pallas_kernels.benchmarks.environment import describe_environment
from pallas_kernels.benchmarks.gpu import gpu_times
from pallas_kernels.benchmarks.numerics import IMPLEMENTATIONS, numerics
from pallas_kernels.benchmarks.results import PARTS, add_run, read_results
from pallas_kernels.benchmarks.static import (
    DIRECTIONS,
    GPU_PEERS,
    NOT_MEASURED,
    OPS,
    h100_static,
    tpu_static,
)
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
    op, cases = check_flags()
    where = describe_environment()
    earlier = earlier_results(op)
    run: dict[str, Any] = {}
    columns = (
        TextColumn("{task.description:32}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:

        def bar(what: str, total: int) -> Callable[[], None]:
            task = progress.add_task(what, total=total)
            return lambda: progress.advance(task)

        for part in PARTS:
            if part in PARTS_FLAG.value:
                run[part] = measure(part, op, cases, bar)
    results = add_run(earlier, op, run, where)
    console = Console()
    for data in tables.tables(results):
        table = Table(*data.columns, title=data.title)
        for row in data.rows:
            table.add_row(*row)
        console.print(table)
    if JSON.value:
        Path(JSON.value).write_text(json.dumps(results, indent=1) + "\n")
    return 0


def check_flags() -> tuple[str, list[str]]:
    """Returns the op and the names of its cases; refuses what is unknown."""
    for flag, values, known in (
        ("op", [OP.value], OPS),
        ("parts", PARTS_FLAG.value, PARTS),
        ("generations", GENERATIONS.value, tuple(TPU_CHIPS)),
    ):
        for value in values:
            if value not in known:
                raise InputError(f"--{flag}: unknown value {value!r}; {nearest(value, known)}")
    known_cases = EXPERT_CASES if OP.value == "grouped_matmul" else STATIC_ATTENTION_CASES
    cases = CASES.value or list(known_cases)
    for case in cases:
        if case not in known_cases:
            raise InputError(f"--cases: unknown case {case!r}; {nearest(case, known_cases)}")
    command_line.check_output(JSON)
    return OP.value, cases


def earlier_results(op: str) -> dict[str, Any]:
    """Returns what the file for the results holds already."""
    if not JSON.value:
        return {}
    try:
        return read_results(Path(JSON.value), op)
    except ValueError as error:
        raise InputError(f"--json: {error}; name another file") from error


def measure(
    part: str, op: str, cases: list[str], bar: Callable[[str, int], Callable[[], None]]
) -> Any:
    """Returns the results of one part."""
    runs = len(cases) * len(DIRECTIONS)
    match part:
        case "numerics":
            return numerics(op, bar("numerics", 2 * len(IMPLEMENTATIONS)))
        case "tpu":
            return {
                generation: tpu_static(
                    op,
                    cases,
                    generation,
                    bar(f"compiling for {generation}", 2 * runs),
                    COMPILE_LIMIT.value,
                )
                for generation in GENERATIONS.value
            }
        case "h100":
            total = runs * (1 + len(GPU_PEERS[op]))
            return h100_static(op, cases, bar("compiling for H100", total))
        case "gpu":
            if jax.default_backend() != "gpu":
                return f"{NOT_MEASURED}: no GPU at hand"
            return gpu_times(op, cases, ROUNDS.value, on_round=bar("timing", runs * ROUNDS.value))
        case _:
            if jax.default_backend() != "cpu":
                return f"{NOT_MEASURED}: the default device is no CPU"
            if op == "grouped_matmul":
                return cpu_experts(CPU_ROUNDS.value, bar("CPU", 2 * CPU_ROUNDS.value))
            steps = 2 * len(LENGTHS) * CPU_ROUNDS.value
            return cpu_attention(CPU_ROUNDS.value, bar("CPU", steps))


if __name__ == "__main__":
    command_line.run(main)
