from __future__ import annotations

from pallas_kernels.compile_report.hlo import HloProgram
from pallas_kernels.compile_report.tpu.operations import operation_bundles
from pallas_kernels.compile_report.tpu.schedule import Region, Schedule

PROGRAM = """\
HloModule jit_f, is_scheduled=true

%double (p.1: bf16[64,128]) -> bf16[64,128] {
  %p.1 = bf16[64,128]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %m.1 = bf16[64,128]{1,0:T(8,128)(2,1)} add(%p.1, %p.1)
}

%double.again (p.2: bf16[64,128]) -> bf16[64,128] {
  %p.2 = bf16[64,128]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %m.2 = bf16[64,128]{1,0:T(8,128)(2,1)} add(%p.2, %p.2), metadata={op_name="again"}
}

%square (p.3: bf16[64,128]) -> bf16[64,128] {
  %p.3 = bf16[64,128]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %m.3 = bf16[64,128]{1,0:T(8,128)(2,1)} multiply(%p.3, %p.3)
}

ENTRY %main (x: bf16[64,128]) -> bf16[64,128] {
  %x = bf16[64,128]{1,0:T(8,128)(2,1)} parameter(0)
  %one = bf16[64,128]{1,0:T(8,128)(2,1)} fusion(%x), kind=kLoop, calls=%double
  %two = bf16[64,128]{1,0:T(8,128)(2,1)} fusion(%one), kind=kLoop, calls=%double.again
  %other = bf16[64,128]{1,0:T(8,128)(2,1)} fusion(%two), kind=kLoop, calls=%square
  %near = bf16[64,128]{1,0:T(8,128)(2,1)S(1)} fusion(%other), kind=kLoop, calls=%double
  ROOT %copy.1 = bf16[64,128]{1,0:T(8,128)(2,1)} copy(%near)
}
"""


SLOTS = {"VSTORE": 0}


def schedule(name: str, trips: int | None) -> Schedule:
    loop = Region("loop", 1, 11, 10, SLOTS, copies=1, trips=trips)
    return Schedule(name, {}, Region("kernel", 0, 12, 12, SLOTS, children=(loop,)), vmem=0)


def bundles(*schedules: Schedule) -> dict[str, int]:
    found = operation_bundles(HloProgram(PROGRAM), {s.name: s for s in schedules})
    assert all(operation.exact for operation in found.values())
    return {name: operation.bundles for name, operation in found.items()}


def test_bundles_of_loops_count_as_often_as_they_run() -> None:
    assert bundles(schedule("copy.1", 5)) == {"copy.1": 2 + 5 * 10}


def test_equal_operations_are_scheduled_once() -> None:
    """Neither another computation, nor another result's place, though names differ."""
    assert bundles(schedule("one", 5)) == {"one": 52, "two": 52}
    assert bundles(schedule("two", 7)) == {"one": 72, "two": 72}


def test_an_operation_keeps_its_own_schedule() -> None:
    assert bundles(schedule("one", 5), schedule("two", 7)) == {"one": 52, "two": 72}


def test_loops_that_do_not_say_how_often_they_run_count_once() -> None:
    found = operation_bundles(HloProgram(PROGRAM), {"other": schedule("other", None)})
    assert found == {"other": (12, False)}
