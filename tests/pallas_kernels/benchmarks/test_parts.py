from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from pallas_kernels.benchmarks import parts
from pallas_kernels.benchmarks.cases import cases_of
from pallas_kernels.benchmarks.parts import Benchmark
from pallas_kernels.benchmarks.static import OPS

BENCHMARK = Benchmark(OPS[0], ("molm", "skewed"), ("v5p", "v6e"), 3, 5, 60.0)


def test_a_bar_has_as_many_steps_as_there_are_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[tuple[str, int]] = []

    def bar(what: str, total: int) -> Callable[[], None]:
        begun.append((what, total))
        return lambda: None

    def tpu_static(op: str, cases: Any, generation: str, done: Any, timeout: float) -> str:
        assert (op, cases, timeout) == (OPS[0], ("molm", "skewed"), 60.0)
        return f"of {generation}"

    monkeypatch.setattr(parts, "tpu_static", tpu_static)
    assert BENCHMARK.measure("tpu", bar) == {"v5p": "of v5p", "v6e": "of v6e"}
    # Two cases, each forward and with the backward pass, of ours and of the peer.
    assert begun == [("compiling for v5p", 8), ("compiling for v6e", 8)]
    assert BENCHMARK.measure("gpu", bar) == "not measured: no GPU at hand"
    with pytest.raises(ValueError, match="part='time'"):
        BENCHMARK.measure("time", bar)


@pytest.mark.parametrize("op", OPS)
def test_an_op_has_cases(op: str) -> None:
    assert all(name == case.name for name, case in cases_of(op).items())
    assert cases_of(op).keys() != cases_of(next(o for o in OPS if o != op)).keys()
