from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from pallas_kernels.benchmarks import static, tables
from pallas_kernels.compile_report.tpu.report import KernelReport, TpuReport
from pallas_kernels.compile_report.worker_process import CompileError

KERNEL = KernelReport(
    name="k.1",
    calls=2,
    grid=(4,),
    bundles=1000,
    executed_bundles=3000,
    loop_bundles=700,
    matmul_use=0.9,
    unit_use={"MXU": 0.9},
    matmul_bundles=(600,),
    matmul_runs=(4,),
    capacity={"MXU": 4},
    spills=3,
    vmem_bytes=1 << 20,
    hbm_bytes=4 << 20,
    copies=12,
    flops=100,
    seconds={"bundles": 2e-6, "bytes": 1e-6},
    predicted_seconds=2e-6,
    exact=True,
)
REPORT = TpuReport(
    generation="v5p",
    temp_bytes=10 << 20,
    argument_bytes=0,
    output_bytes=0,
    hbm_bytes=100 << 20,
    bytes_by_category={"kernel": 100 << 20},
    predicted_seconds=4e-6,
    kernels=(KERNEL,),
    compile_seconds=1.0,
    exact=True,
)


def test_ratios_are_ours_over_the_peers() -> None:
    ours = {"hbm_bytes": 50, "temp_bytes": 10, "predicted_seconds": 1.0}
    peer = {"hbm_bytes": 100, "temp_bytes": 0, "predicted_seconds": 4.0}
    assert static.ratios(ours, peer) == {"hbm_bytes": 0.5, "predicted_seconds": 0.25}
    assert static.ratios({"error": "refused"}, peer) == {}


def test_bundles_are_counted_by_visible_pair() -> None:
    # 12 heads of 32 blocks: 12 * 32 * 33 / 2 pairs.
    figures = static.per_pair(REPORT, "s4096")
    assert figures["bundles_per_pair"] == pytest.approx(2 * 3000 / (12 * 32 * 33 / 2))


@pytest.mark.parametrize("op", static.OPS)
def test_references_build(op: str) -> None:
    case = {"grouped_matmul": "molm", "stickbreaking_attention": "s4096"}[op]
    small = {"tokens": 64} if op == "grouped_matmul" else {"length": 128}
    program = static.reference(op, case, "xla", "forward", **small).build()
    assert callable(program.function)


def test_ours_and_the_peer_stand_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def reports(generation: str, programs: Any, on_done: Any, timeout: float) -> list[Any]:
        assert timeout == 7
        asked.extend(programs)
        half = dataclasses.replace(REPORT, hbm_bytes=50 << 20)
        return [half, REPORT, CompileError("too large\nfor VMEM"), REPORT]

    monkeypatch.setattr(static, "tpu_reports", reports)
    results = static.tpu_static("grouped_matmul", ["molm"], "v5p", timeout=7)
    names = [(p.arguments["name"], p.arguments["direction"]) for p in asked]
    assert names[:2] == [("tpu", "forward"), ("megablox", "forward")]
    assert results["molm"]["forward"]["ratios"]["hbm_bytes"] == 0.5
    assert results["molm"]["forward_backward"]["ours"] == {"error": "too large\nfor VMEM"}
    listed = list(tables.tables({"op": "grouped_matmul", "tpu": {"v5p": results}}))
    assert [table.title.split()[0] for table in listed] == ["Whole", "Their"]
    assert all(len(row) == len(table.columns) for table in listed for row in table.rows)
    programs = [" | ".join(row) for row in listed[0].rows]
    assert "v5p | molm | forward | 50 | 100 | 0.50 |" in programs[0]
    assert "refused" in programs[1]


@pytest.mark.verify
def test_megablox_moves_its_copies() -> None:
    results = static.tpu_static("grouped_matmul", ["molm"], "v5p")
    entry = results["molm"]["forward"]
    assert entry["megablox"]["exact"]
    # Rows are gathered before the products and put in order after them: each read and written.
    copies = 2 * 2 * 32768 * 1024 * 2
    kernels = 32768 * (1024 + 2048 + 2048 + 1024) * 2 + 2 * 32 * 1024 * 2048 * 2
    assert entry["megablox"]["hbm_bytes"] >= copies + kernels
    assert "error" not in entry["ours"], entry["ours"]
    assert entry["ratios"]["hbm_bytes"] < 1
