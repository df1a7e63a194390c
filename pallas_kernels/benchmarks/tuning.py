"""Tries block sizes: by the predicted time, or by the clock where the chip is at hand."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels.benchmarks.cases import EXPERT_CASES, STATIC_ATTENTION_CASES
from pallas_kernels.benchmarks.numerics import attention_inputs, expert_inputs
from pallas_kernels.benchmarks.programs import attention, experts
from pallas_kernels.benchmarks.timing import time_interleaved
from pallas_kernels.compile_report.program import Program, ProgramReference
from pallas_kernels.compile_report.tpu.report import TpuReport, tpu_reports

# By kernel: the op, the case that it is tuned at, and the pass that runs it.
KERNELS = {
    "matmul": ("grouped_matmul", "molm_attention", "forward"),
    "weights": ("grouped_matmul", "molm_attention", "forward_backward"),
    "feed_forward": ("grouped_matmul", "molm", "forward"),
    "feed_forward_gradient": ("grouped_matmul", "molm", "forward_backward"),
    "attention": ("stickbreaking_attention", "s4096", "forward_backward"),
}


@dataclasses.dataclass(frozen=True)
class Trial:
    """One candidate.

    Attributes:
        sizes: the fields of its block sizes.
        seconds: predicted or measured; None if it was refused.
        remark: by what it is limited, or why it was refused.
    """

    sizes: dict[str, Any]
    seconds: float | None
    remark: str


def _block_sizes(op: str) -> Any:
    # Imported when needed: whoever benchmarks another backend needs no kernels for TPUs.
    room = "attention.stickbreaking" if op == "stickbreaking_attention" else op
    return importlib.import_module(f"pallas_kernels.{room}.tpu.block_sizes")


def candidates(kernel: str) -> list[dict[str, Any]]:
    """The block sizes that the kernel's own module thinks worth trying, as plain data."""
    op = KERNELS[kernel][0]
    module = _block_sizes(op)
    found = module.candidates(kernel) if op == "grouped_matmul" else module.candidates()
    return [dataclasses.asdict(sizes) for sizes in found]


def tuned_program(
    kernel: str, sizes: dict[str, Any], case: str, overrides: dict[str, Any] | None = None
) -> Program:
    """The program that runs `kernel` in blocks of `sizes`.

    Args:
        kernel: a key of `KERNELS`.
        sizes: as in `candidates`.
        case: a name of the op's cases.
        overrides: of fields of the case.
    """
    op, _, direction = KERNELS[kernel]
    build = experts.expert_program if op == "grouped_matmul" else attention.attention_program
    program = build(case, "tpu", direction, overrides)
    return Program(_in_blocks(kernel, sizes, program.function), program.arguments)


def _in_blocks(
    kernel: str, sizes: dict[str, Any], function: Callable[..., Any]
) -> Callable[..., Any]:
    module = _block_sizes(KERNELS[kernel][0])
    blocks: Any
    if kernel == "attention":
        parts = {name: module.BlockSizes(**fields) for name, fields in sizes.items()}
        blocks = module.TpuBlockSizes(**parts)
    else:
        blocks = {kernel: module.BlockSizes(**sizes)}

    def run(*arguments: Any) -> Any:
        with module.compiling_for(blocks=blocks):
            return function(*arguments)

    return run


def predict(
    kernel: str,
    tried: Sequence[dict[str, Any]],
    generation: str,
    case: str,
    on_done: Callable[[], None] | None = None,
    overrides: dict[str, Any] | None = None,
) -> list[Trial]:
    """Trials by the predicted time of the whole program, in the order of `tried`."""
    references = [
        ProgramReference(
            "pallas_kernels.benchmarks.tuning:tuned_program",
            {"kernel": kernel, "sizes": sizes, "case": case, "overrides": overrides},
        )
        for sizes in tried
    ]
    trials = []
    for sizes, report in zip(tried, tpu_reports(generation, references, on_done), strict=True):
        if isinstance(report, TpuReport):
            slowest = max(report.kernels, key=lambda k: k.predicted_seconds * k.calls)
            limit = max(slowest.seconds, key=slowest.seconds.__getitem__)
            remark = f"{slowest.name}: {limit}, MATMUL slots {slowest.matmul_use:.0%}"
            trials.append(Trial(sizes, report.predicted_seconds, remark))
        else:
            trials.append(Trial(sizes, None, str(report).splitlines()[0]))
    return trials


def measure(
    kernel: str,
    tried: Sequence[dict[str, Any]],
    case: str,
    rounds: int,
    on_done: Callable[[], None] | None = None,
) -> list[Trial]:
    """Trials by the median time on the TPU at hand, in the order of `tried`."""
    op, _, direction = KERNELS[kernel]
    count = {"forward": -1, "forward_backward": None}[direction]

    def inputs(seed: int) -> tuple[Any, ...]:
        if op == "grouped_matmul":
            return expert_inputs(EXPERT_CASES[case], seed, jnp.bfloat16)[:count]
        shape = STATIC_ATTENTION_CASES[case]
        sizes = shape.batch, shape.length, shape.heads, shape.width
        return attention_inputs(seed, *sizes, jnp.bfloat16)[:count]

    trials: dict[int, Trial] = {}
    able = {}
    for number, sizes in enumerate(tried):
        run = jax.jit(tuned_program(kernel, sizes, case).function)
        try:
            jax.block_until_ready(run(*inputs(-1)))
            able[str(number)] = run
        # Blocks that do not fit are refused by the compiler, in its own words.
        except jax.errors.JaxRuntimeError as error:
            trials[number] = Trial(sizes, None, str(error).splitlines()[0])
        if on_done is not None:
            on_done()
    for name, times in time_interleaved(able, inputs, rounds=rounds, calls=5).items():
        spread = f"from {min(times.seconds) * 1e6:,.0f} to {max(times.seconds) * 1e6:,.0f} us"
        trials[int(name)] = Trial(tried[int(name)], times.median, spread)
    return [trials[number] for number in range(len(tried))]


def best(trials: Sequence[Trial]) -> Trial:
    """The fastest; of several within a hundredth of it, the first.

    Raises:
        ValueError: all were refused.
    """
    able = [(trial.seconds, trial) for trial in trials if trial.seconds is not None]
    if not able:
        raise ValueError("every candidate was refused: " + (trials[0].remark if trials else "none"))
    least = min(seconds for seconds, _ in able)
    return next(trial for seconds, trial in able if seconds <= 1.01 * least)
