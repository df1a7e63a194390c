"""The compile-time report of ours beside that of a peer, case by case."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from pallas_kernels.benchmarks.cases import STATIC_ATTENTION_CASES
from pallas_kernels.compile_report.compilation import CompilerUnavailableError
from pallas_kernels.compile_report.gpu.report import H100Report, h100_reports
from pallas_kernels.compile_report.program import ProgramReference
from pallas_kernels.compile_report.tpu.report import TpuReport, tpu_reports

NOT_MEASURED = "not measured"
DIRECTIONS = ("forward", "forward_backward")
OPS = ("grouped_matmul", "stickbreaking_attention")
_PACKAGE = "pallas_kernels.benchmarks."
_BUILDERS = {
    "grouped_matmul": _PACKAGE + "programs.experts:expert_program",
    "stickbreaking_attention": _PACKAGE + "programs.attention:attention_program",
}
TPU_PEERS = {"grouped_matmul": "megablox", "stickbreaking_attention": "splash"}
GPU_PEERS = {
    "grouped_matmul": ("hopper_ragged_dot", "tokamax"),
    "stickbreaking_attention": ("hopper_attention", "hopper_attention_full"),
}


def reference(
    op: str, case: str, contender: str, direction: str, **overrides: Any
) -> ProgramReference:
    """Names the program of a contender."""
    arguments = {"case": case, "name": contender, "direction": direction}
    return ProgramReference(_BUILDERS[op], {**arguments, "overrides": overrides})


def tpu_static(
    op: str,
    cases: Sequence[str],
    generation: str,
    on_done: Callable[[], None] | None = None,
    timeout: float = 600.0,
    **overrides: Any,
) -> dict[str, Any]:
    """Reports of ours and of the peer for one TPU generation, and what they compare to.

    Args:
        op: of `OPS`.
        cases: names of cases.
        generation: of `chips.TPU_CHIPS`.
        on_done: called after each program.
        timeout: seconds for each program, on average.
        overrides: of fields of the cases.

    Returns:
        By case and direction: "ours" and the peer, each a report or {"error": ...}, and "ratios".
        A text instead, if libtpu is not installed.
    """
    peer = TPU_PEERS[op]
    keys = [(c, d, name) for c in cases for d in DIRECTIONS for name in ("tpu", peer)]
    programs = [reference(op, case, name, direction, **overrides) for case, direction, name in keys]
    try:
        reports = tpu_reports(generation, programs, on_done, timeout)
    except CompilerUnavailableError as error:
        return {"error": f"{NOT_MEASURED}: {error}"}
    results: dict[str, Any] = {}
    for (case, direction, name), report in zip(keys, reports, strict=True):
        entry = results.setdefault(case, {}).setdefault(direction, {})
        label = "ours" if name == "tpu" else peer
        if isinstance(report, TpuReport):
            entry[label] = report.to_dict()
            if op == "stickbreaking_attention":
                entry[label] |= per_pair(report, case, **overrides)
        else:
            entry[label] = {"error": str(report)}
    for by_direction in results.values():
        for entry in by_direction.values():
            entry["ratios"] = ratios(entry["ours"], entry[peer])
    return results


def per_pair(report: TpuReport, case: str, **overrides: Any) -> dict[str, float]:
    """Bundles that run, for each visible pair of 128 queries and 128 keys."""
    shape = STATIC_ATTENTION_CASES[case]
    fields = {**vars(shape), **overrides}
    pairs = type(shape)(**fields).pairs
    return {"bundles_per_pair": sum(k.executed_bundles * k.calls for k in report.kernels) / pairs}


def ratios(ours: dict[str, Any], peer: dict[str, Any]) -> dict[str, float]:
    """Ours over the peer's: below 1 is better."""
    names = ("hbm_bytes", "temp_bytes", "predicted_seconds", "bundles_per_pair")
    return {
        name: ours[name] / peer[name]
        for name in names
        if name in ours and name in peer and peer[name]
    }


def h100_static(
    op: str,
    cases: Sequence[str],
    on_done: Callable[[], None] | None = None,
    **overrides: Any,
) -> dict[str, Any]:
    """Reports of ours and of the peers for an H100, by case, direction and contender."""
    keys = [
        (case, direction, name)
        for case in cases
        for direction in DIRECTIONS
        for name in ("gpu", *GPU_PEERS[op])
    ]
    programs = [reference(op, case, name, direction, **overrides) for case, direction, name in keys]
    try:
        reports = h100_reports(programs, on_done)
    except CompilerUnavailableError as error:
        return {"error": f"{NOT_MEASURED}: {error}"}
    results: dict[str, Any] = {}
    for (case, direction, name), report in zip(keys, reports, strict=True):
        entry = results.setdefault(case, {}).setdefault(direction, {})
        label = "ours" if name == "gpu" else name
        if isinstance(report, H100Report):
            entry[label] = report.to_dict()
        else:
            entry[label] = {"error": str(report)}
    return results
