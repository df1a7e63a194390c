"""The compile-time report of a program for a TPU that is not there.

Each generation is compiled in a process of its own (`worker`), because libtpu reads its flags
when it loads. The report joins the compiler's schedule of each kernel (`schedule`), the bytes that
move (`traffic`) and what is public about the chip (`chips`).
"""

from __future__ import annotations

import dataclasses
import json
import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pallas_kernels.compile_report.chips import TpuChip, find_chip
from pallas_kernels.compile_report.hlo import HloProgram
from pallas_kernels.compile_report.program import ProgramReference
from pallas_kernels.compile_report.tpu.schedule import (
    DUMP_FLAGS,
    LONGEST_WAIT,
    Region,
    Schedule,
    read_schedules,
)
from pallas_kernels.compile_report.traffic import KernelTraffic, program_traffic
from pallas_kernels.compile_report.worker_process import CompileError, run_worker

# The least that starting a copy costs in any schedule compiled so far (row gathers on v5p, double
# buffered and unpredicated, beside a product).
_BUNDLES_PER_COPY = 2


@dataclasses.dataclass(frozen=True)
class KernelReport:
    """One kernel.

    Attributes:
        name: of its instruction.
        calls: how often the program runs it.
        grid: steps along each axis.
        bundles: in the whole kernel.
        executed_bundles: that a call runs, see `executed_bundles`.
        loop_bundles: in the innermost loop that multiplies, without parts that most steps skip.
        matmul_use: the part of the MATMUL slots used there.
        unit_use: the same for every unit.
        matmul_bundles: of each part that multiplies, parts inside it left out.
        matmul_runs: how often those run in a call; empty if they could not be matched.
        capacity: units of each kind that a bundle can use.
        spills: stores and reloads of spilled registers in the kernel.
        vmem_bytes: blocks, scratch and spills.
        hbm_bytes: moved in a call.
        copies: started in a call.
        flops: of the products of a call, on masked values too.
        seconds: what each limit alone would take for a call: "bundles", "bytes", "copies", "flops".
        predicted_seconds: the largest of them.
        exact: False if trip counts or predicates were not all known.
    """

    name: str
    calls: int
    grid: tuple[int, ...]
    bundles: int
    executed_bundles: int
    loop_bundles: int
    matmul_use: float
    unit_use: dict[str, float]
    matmul_bundles: tuple[int, ...]
    matmul_runs: tuple[int, ...]
    capacity: dict[str, int]
    spills: int
    vmem_bytes: int
    hbm_bytes: int
    copies: int
    flops: int
    seconds: dict[str, float]
    predicted_seconds: float
    exact: bool


@dataclasses.dataclass(frozen=True)
class TpuReport:
    """One program on one TPU generation.

    Attributes:
        generation: the chip.
        temp_bytes: HBM beside arguments and results.
        argument_bytes: HBM of the arguments.
        output_bytes: HBM of the results.
        hbm_bytes: moved from and to HBM.
        bytes_by_category: the same by category of `hlo.Movement`.
        predicted_seconds: of the kernels, and of the bytes of all else.
        kernels: in program order.
        compile_seconds: what compiling took.
        exact: False if a kernel's counts are not exact.
    """

    generation: str
    temp_bytes: int
    argument_bytes: int
    output_bytes: int
    hbm_bytes: int
    bytes_by_category: dict[str, int]
    predicted_seconds: float
    kernels: tuple[KernelReport, ...]
    compile_seconds: float
    exact: bool

    def to_dict(self) -> dict[str, Any]:
        """Returns the report as plain data."""
        return dataclasses.asdict(self)


def tpu_reports(
    generation: str,
    programs: Sequence[ProgramReference],
    on_done: Callable[[], None] | None = None,
    timeout: float = 600.0,
) -> list[TpuReport | CompileError]:
    """Compiles programs for a TPU generation and reports on them.

    Args:
        generation: a name of `chips.TPU_CHIPS`.
        programs: what to compile. They are built in another process, in the same folder and with
            the same `sys.path`.
        on_done: called after each program.
        timeout: seconds for each of them, on average.

    Returns:
        A report, or the compiler's refusal, of each.

    Raises:
        CompilerUnavailableError: libtpu is not installed.
        RuntimeError: the process died.
    """
    chip = find_chip(generation)
    with tempfile.TemporaryDirectory(prefix="tpu_report_") as name:
        folder = Path(name)
        (folder / "dump").mkdir()
        flags = " ".join(flag.format(folder=folder / "dump") for flag in DUMP_FLAGS)
        run_worker(
            "pallas_kernels.compile_report.tpu.worker",
            folder,
            programs,
            request={"topology": chip.topology},
            environment={"LIBTPU_INIT_ARGS": flags},
            on_done=on_done,
            timeout=timeout * len(programs),
        )
        return [_report(chip, folder / str(i)) for i in range(len(programs))]


def tpu_report(generation: str, program: ProgramReference) -> TpuReport:
    """The report of one program, see `tpu_reports`.

    Raises:
        CompileError: the compiler refused it.
    """
    [report] = tpu_reports(generation, [program])
    if isinstance(report, CompileError):
        raise report
    return report


def _report(chip: TpuChip, folder: Path) -> TpuReport | CompileError:
    result = json.loads((folder / "program.json").read_text())
    if "error" in result:
        return CompileError(result["error"])
    schedules = read_schedules(folder, chip.branch_delay)
    kernels = [_from_plain(kernel) for kernel in result["kernels"]]
    try:
        traffic = program_traffic(HloProgram((folder / "program.hlo").read_text()), kernels)
    except ValueError as error:
        return CompileError(f"what it moves cannot be counted: {error}")
    reports = []
    for name, kernel, size, calls in traffic.kernels:
        schedule = schedules.get(name)
        if schedule is None:
            # Equal kernels are compiled once.
            same = [
                other for other, k, _, _ in traffic.kernels if k == kernel and other in schedules
            ]
            if not same:
                return CompileError(f"the compiler left no schedule of kernel {name}")
            schedule = schedules[same[0]]
        reports.append(_kernel_report(chip, name, schedule, kernel, size // max(calls, 1), calls))
    others = traffic.total - traffic.by_category.get("kernel", 0)
    return TpuReport(
        generation=chip.name,
        temp_bytes=result["temp_bytes"],
        argument_bytes=result["argument_bytes"],
        output_bytes=result["output_bytes"],
        hbm_bytes=traffic.total,
        bytes_by_category=traffic.by_category,
        predicted_seconds=sum(kernel.predicted_seconds * kernel.calls for kernel in reports)
        + others / chip.hbm_bandwidth,
        kernels=tuple(reports),
        compile_seconds=result["compile_seconds"],
        exact=traffic.exact and all(kernel.exact for kernel in reports),
    )


def _from_plain(kernel: dict[str, Any]) -> KernelTraffic:
    values: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in kernel.items()
    }
    return KernelTraffic(**values)


def _kernel_report(
    chip: TpuChip, name: str, schedule: Schedule, kernel: KernelTraffic, size: int, calls: int
) -> KernelReport:
    loop, regions = schedule.inner_loop, schedule.matmul_regions
    runs = tuple(n for n in kernel.product_runs if n)
    matched = len(runs) == len(regions)
    executed, exact = executed_bundles(schedule, kernel)
    share = kernel.share(chip.cores)
    seconds = {
        "bundles": executed / chip.clock * share,
        "bytes": size / chip.hbm_bandwidth,
        "copies": kernel.copies * _BUNDLES_PER_COPY / chip.clock * share,
        "flops": kernel.flops / (chip.matmul_flops / chip.cores) * share,
    }
    return KernelReport(
        name=name,
        calls=calls,
        grid=kernel.grid,
        bundles=schedule.kernel.bundles,
        executed_bundles=executed,
        loop_bundles=loop.steady[0],
        matmul_use=schedule.use(loop, "MXU"),
        unit_use={unit: schedule.use(loop, unit) for unit in schedule.capacity},
        matmul_bundles=tuple(region.own_bundles for region in regions),
        matmul_runs=runs if matched else (),
        capacity=schedule.capacity,
        spills=schedule.kernel.slots["VSTORE:SPILL"] + schedule.kernel.slots["VLOAD:FILL"],
        vmem_bytes=schedule.vmem,
        hbm_bytes=size,
        copies=kernel.copies,
        flops=kernel.flops,
        seconds=seconds,
        predicted_seconds=max(seconds.values()),
        exact=kernel.exact and exact,
    )


def executed_bundles(schedule: Schedule, kernel: KernelTraffic) -> tuple[int, bool]:
    """Bundles that a call of the kernel runs, and whether all trip counts are known.

    The outermost loop is the grid's. Loops of the schedule and of the kernel's jaxpr are matched in
    order, and so are the parts that multiply and the branches that only store. Where the numbers of
    loops differ, because the compiler unrolled or added one, an inner loop is taken to run as often
    as the part of the jaxpr that multiplies most. Of a part that most steps skip
    (`Region.skips`) only what could be matched is counted.
    """
    steps = math.prod(kernel.grid)
    loops = [region for region in schedule.kernel.walk() if region.kind == "loop"]
    written = [loop for loop in loops if loop.copies or loop.bundles > LONGEST_WAIT]
    counts = [n for n in kernel.loop_runs if n]
    expected = ([steps] if steps > 1 else []) + counts
    products = [n for n in kernel.product_runs if n]
    most = max(products, default=steps)
    known = {}
    if len(loops) != len(expected) == len(written):
        loops = written
    exact = len(loops) == len(expected)
    if exact:
        times = known = dict(zip(map(id, loops), expected, strict=True))
    else:
        times = {id(loop): steps if loop in schedule.kernel.children else most for loop in loops}
        if steps > 1 and loops:
            times[id(loops[0])] = steps
        exact = len(loops) == 1 and steps > 1
    regions = schedule.matmul_regions
    if len(products) == len(regions):
        times |= dict(zip(map(id, regions), products, strict=True))
    stores = [region for region in schedule.kernel.walk() if region.only_stores]
    runs = kernel.store_runs
    if runs and len(set(runs)) == 1:
        # The compiler may have made one of branches with the same predicate.
        runs = runs[:1] * len(stores)
    if len(stores) == len(runs):
        known = known | dict(zip(map(id, stores), runs, strict=True))
    exact &= all(id(region) in known for region in stores)

    def run(region: Region, executions: int) -> Iterator[int]:
        yield region.own_bundles * executions
        for child in region.children:
            yield from run_child(region, child, executions)

    def run_child(region: Region, child: Region, executions: int) -> Iterator[int]:
        if id(child) in known:
            yield from run(child, known[id(child)])
        elif not region.skips(child):
            yield from run(child, times.get(id(child), executions))
        else:
            for inner in child.children:
                if id(inner) in known:
                    yield from run(inner, known[id(inner)])

    return sum(run(schedule.kernel, 1)), exact
