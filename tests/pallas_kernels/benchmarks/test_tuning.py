from __future__ import annotations

from typing import Any

import pytest

from pallas_kernels.benchmarks import tuning
from pallas_kernels.benchmarks.tuning import Trial
from pallas_kernels.compile_report.traffic import kernel_traffic
from pallas_kernels.compile_report.worker_process import CompileError


@pytest.mark.parametrize("kernel", tuning.KERNELS)
def test_candidates_are_plain_data_without_doubles(kernel: str) -> None:
    found = tuning.candidates(kernel)
    assert len(found) > 3
    assert len({str(sizes) for sizes in found}) == len(found)


def test_a_program_runs_in_the_blocks_that_are_tried() -> None:
    small = {"length": 1024, "heads": 1}
    grids = []
    for sizes in tuning.candidates("attention")[:2]:
        program = tuning.tuned_program("attention", sizes, "s4096", small)
        grids.append(kernel_traffic(program.function, *program.arguments)[0].copies)
    assert grids[0] != grids[1]


def test_the_fastest_of_those_that_run_is_best() -> None:
    trials = [Trial({"a": n}, seconds, "") for n, seconds in enumerate((None, 2.0, 1.005, 1.0))]
    # Within a hundredth the first one counts.
    assert tuning.best(trials).sizes == {"a": 2}
    with pytest.raises(ValueError, match="refused: too large"):
        tuning.best([Trial({}, None, "too large")])


def test_refusals_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def reports(generation: str, programs: Any, on_done: Any) -> list[Any]:
        assert programs[0].arguments["sizes"] == {"height": 8}
        return [CompileError("no room\nin VMEM")]

    monkeypatch.setattr(tuning, "tpu_reports", reports)
    [trial] = tuning.predict("matmul", [{"height": 8}], "v5p", "molm_attention")
    assert trial == Trial({"height": 8}, None, "no room")
