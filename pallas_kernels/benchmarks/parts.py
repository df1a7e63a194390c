"""The parts of a benchmark of an op: what each of them measures, and on which machine."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax

from pallas_kernels.benchmarks.cpu import LENGTHS, cpu_attention, cpu_experts
from pallas_kernels.benchmarks.gpu import gpu_times
from pallas_kernels.benchmarks.numerics import IMPLEMENTATIONS, numerics
from pallas_kernels.benchmarks.static import (
    DIRECTIONS,
    GPU_PEERS,
    NOT_MEASURED,
    h100_static,
    tpu_static,
)

Bar = Callable[[str, int], Callable[[], None]]
"""`bar(what, total)` begins a bar of so many steps; what it returns is called after each step."""


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """A benchmark of an op, to be measured part by part.

    Attributes:
        op: of `static.OPS`.
        cases: names of its cases.
        generations: of TPUs, of `chips.TPU_CHIPS`.
        rounds: of timing on a GPU.
        cpu_rounds: of timing on a CPU.
        compile_limit: seconds that compiling a program for a TPU may take, on average.
    """

    op: str
    cases: Sequence[str]
    generations: Sequence[str]
    rounds: int
    cpu_rounds: int
    compile_limit: float

    def measure(self, part: str, bar: Bar) -> Any:
        """The results of a part of `results.PARTS`; a text if this machine cannot measure it."""
        programs = len(self.cases) * len(DIRECTIONS)
        match part:
            case "numerics":
                return numerics(self.op, bar("numerics", 2 * len(IMPLEMENTATIONS)))
            case "tpu":
                return {
                    generation: tpu_static(
                        self.op,
                        self.cases,
                        generation,
                        bar(f"compiling for {generation}", 2 * programs),
                        self.compile_limit,
                    )
                    for generation in self.generations
                }
            case "h100":
                total = programs * (1 + len(GPU_PEERS[self.op]))
                return h100_static(self.op, self.cases, bar("compiling for H100", total))
            case "gpu":
                if jax.default_backend() != "gpu":
                    return f"{NOT_MEASURED}: no GPU at hand"
                done = bar("timing", programs * self.rounds)
                return gpu_times(self.op, self.cases, self.rounds, on_round=done)
            case "cpu":
                return self._on_this_processor(bar)
            case _:
                raise ValueError(f"part={part!r} is none of a benchmark")

    def _on_this_processor(self, bar: Bar) -> Any:
        if jax.default_backend() != "cpu":
            return f"{NOT_MEASURED}: the default device is no CPU"
        if self.op == "grouped_matmul":
            return cpu_experts(self.cpu_rounds, bar("CPU", 2 * self.cpu_rounds))
        steps = 2 * len(LENGTHS) * self.cpu_rounds
        return cpu_attention(self.cpu_rounds, bar("CPU", steps))
