"""Report of what the assembler makes of Mosaic GPU kernels for an H100 that is not there.

Registers, spills and notes are ptxas's own; matrix instructions are counted in the PTX (what is
asked for) and in the machine code (what remains); occupancy follows from the limits of a
multiprocessor.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import re
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pallas_kernels.compile_report.chips import Hopper
from pallas_kernels.compile_report.program import ProgramReference
from pallas_kernels.compile_report.worker_process import CompileError, run_worker

_WGMMA = re.compile(r"wgmma\.mma_async\.\S*?(m\d+n\d+k\d+)\.(\w+)\.(\w+)\.(\w+)")
_SASS = re.compile(r"/\*[0-9a-f]{4,5}\*/\s+(?:@!?U?P\w+ )?([A-Z][A-Z0-9_.]*)")
_SPILLS = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
# What the counts of instructions are given for.
_INSTRUCTIONS = (
    "HGMMA",
    "UTMALDG",
    "UTMASTG",
    "LDGSTS",
    "LDG",
    "STG",
    "LDS",
    "STS",
    "LDL",
    "STL",
    "MUFU",
    "BAR",
    "SYNCS",
    "WARPGROUP",
)


@dataclasses.dataclass(frozen=True)
class H100KernelReport:
    """One kernel.

    Attributes:
        name: of its files.
        threads: of a block.
        registers: of a thread, at launch.
        register_changes: by `setmaxnreg`: the registers that warpgroups give up and take.
        stack_bytes: of a thread.
        spill_store_bytes: of a thread.
        spill_load_bytes: of a thread.
        shared_bytes: of a block.
        wgmma: matrix instructions in the PTX, by shape and types: "m64n128k16.f32.bf16.bf16".
        instructions: in the machine code, by name; all of them as "total".
        notes: codes of ptxas's remarks (C7510 and the like: wgmma serialised, or waits added).
        blocks_per_multiprocessor: that fit at once.
        warps_per_multiprocessor: of those blocks.
    """

    name: str
    threads: int
    registers: int
    register_changes: tuple[int, ...]
    stack_bytes: int
    spill_store_bytes: int
    spill_load_bytes: int
    shared_bytes: int
    wgmma: dict[str, int]
    instructions: dict[str, int]
    notes: tuple[str, ...]
    blocks_per_multiprocessor: int
    warps_per_multiprocessor: int


@dataclasses.dataclass(frozen=True)
class H100Report:
    """One program.

    Attributes:
        temp_bytes: device memory beside arguments and results.
        argument_bytes: of the arguments.
        output_bytes: of the results.
        kernels: Mosaic GPU kernels, in the order of their assembly; XLA's own are left out.
        compile_seconds: what compiling took.
    """

    temp_bytes: int
    argument_bytes: int
    output_bytes: int
    kernels: tuple[H100KernelReport, ...]
    compile_seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Returns the report as plain data."""
        return dataclasses.asdict(self)


def h100_reports(
    programs: Sequence[ProgramReference],
    on_done: Callable[[], None] | None = None,
    timeout: float = 600.0,
) -> list[H100Report | CompileError]:
    """Compiles programs for an H100 and reports on their kernels.

    Args:
        programs: what to compile. They are built in another process, in the same folder and with
            the same `sys.path`.
        on_done: called after each program.
        timeout: seconds for each of them.

    Returns:
        A report, or the compiler's refusal, of each.

    Raises:
        CompilerUnavailableError: the CUDA plugin or its assemblers are not installed.
        RuntimeError: the process died.
    """
    return [_compiled(program, on_done, timeout) for program in programs]


def _compiled(
    program: ProgramReference, on_done: Callable[[], None] | None, timeout: float
) -> H100Report | CompileError:
    # A process for each: one that has compiled a kernel before leaves only half of its files again.
    with tempfile.TemporaryDirectory(prefix="h100_report_") as name:
        folder = Path(name)
        run_worker(
            "pallas_kernels.compile_report.gpu.worker",
            folder,
            [program],
            request={},
            environment={"MOSAIC_GPU_DUMP_TO": str(folder)},
            on_done=on_done,
            timeout=timeout,
        )
        return _report(folder / "0")


def h100_report(program: ProgramReference) -> H100Report:
    """The report of one program, see `h100_reports`.

    Raises:
        CompileError: the compiler refused it.
    """
    [report] = h100_reports([program])
    if isinstance(report, CompileError):
        raise report
    return report


def _report(folder: Path) -> H100Report | CompileError:
    result = json.loads((folder / "program.json").read_text())
    if "error" in result:
        return CompileError(result["error"])
    try:
        kernels = tuple(_kernel(path) for path in sorted(folder.glob("*.ptx")))
    except ValueError as error:
        return CompileError(f"what the compiler left cannot be read: {error}")
    return H100Report(kernels=kernels, **result)


def _kernel(path: Path) -> H100KernelReport:
    base = path.name.removesuffix(".ptx")
    [machine_code] = path.parent.glob(f"{base}.sass*")
    return parse_kernel(
        base,
        path.read_text(),
        path.with_suffix(".ptxas").read_text(),
        resources_of(path),
        machine_code.read_text(),
    )


def resources_of(path: Path) -> str:
    """Reads what Mosaic GPU says of a kernel's shared memory.

    Its files are numbered apart from the assembler's. Where the numbers differ, kernels of the same
    name are taken in order; if there is not one file for each, all of them must agree.
    """
    exact = path.with_suffix(".resources.txt")
    if exact.exists():
        return exact.read_text()
    stem = re.sub(r"_\d+$", "", path.stem)
    kernels, files = (
        sorted(path.parent.glob(f"{stem}_*{ending}"), key=_number)
        for ending in (".ptx", ".resources.txt")
    )
    if len(kernels) == len(files):
        return files[kernels.index(path)].read_text()
    found = (re.findall(r"smem_scratch_bytes=\d+", file.read_text()) for file in files)
    sizes = {size for in_file in found for size in in_file}
    if len(sizes) != 1:
        raise ValueError(f"kernel {path.stem}: its shared memory is not known, of {sorted(sizes)}")
    return sizes.pop()


def _number(path: Path) -> int:
    """The number at the end of `NAME_12.ptx` or `NAME_12.resources.txt`."""
    return int(path.name.split(".")[0].rsplit("_", 1)[1])


def parse_kernel(
    name: str, ptx: str, assembler_log: str, resources: str, machine_code: str
) -> H100KernelReport:
    """The report of a kernel from the four texts that Mosaic GPU leaves.

    Raises:
        ValueError: a text is not of the known form.
    """

    def find(pattern: str | re.Pattern[str], text: str, what: str) -> re.Match[str]:
        match = re.search(pattern, text)
        if match is None:
            raise ValueError(f"kernel {name}: no {what} in what the compiler left")
        return match

    threads = int(find(r"\.maxntid (\d+)", ptx, "block size")[1])
    stack, stores, loads = map(int, find(_SPILLS, assembler_log, "spills").groups())
    registers = int(find(r"Used (\d+) registers", assembler_log, "registers")[1])
    fixed = re.search(r"(\d+) bytes smem", assembler_log)
    dynamic = find(r"smem_scratch_bytes=(\d+)", resources, "shared memory")
    shared = int(dynamic[1]) + (int(fixed[1]) if fixed else 0)
    names = [match[1].split(".")[0] for match in _SASS.finditer(machine_code)]
    counts = collections.Counter(names)
    blocks = occupancy(threads, registers, shared)
    return H100KernelReport(
        name=name,
        threads=threads,
        registers=registers,
        register_changes=tuple(int(n) for n in re.findall(r"setmaxnreg\.\w+\S* (\d+)", ptx)),
        stack_bytes=stack,
        spill_store_bytes=stores,
        spill_load_bytes=loads,
        shared_bytes=shared,
        wgmma=dict(collections.Counter(".".join(match) for match in _WGMMA.findall(ptx))),
        instructions={"total": len(names)}
        | {
            instruction: counts[instruction] for instruction in _INSTRUCTIONS if counts[instruction]
        },
        notes=tuple(dict.fromkeys(re.findall(r"\((C\d+)\)", assembler_log))),
        blocks_per_multiprocessor=blocks,
        warps_per_multiprocessor=blocks * -(-threads // Hopper().warp),
    )


def occupancy(threads: int, registers: int, shared_bytes: int, limits: Hopper | None = None) -> int:
    """Blocks that a multiprocessor holds at once.

    Args:
        threads: of a block.
        registers: of a thread.
        shared_bytes: of a block.
        limits: of the multiprocessor.
    """
    limits = limits or Hopper()
    warps = -(-threads // limits.warp)
    unit = limits.register_unit
    by_warp = -(-registers * limits.warp // unit) * unit
    return min(
        limits.blocks,
        limits.threads // (warps * limits.warp),
        limits.registers // (by_warp * warps),
        limits.shared_memory // (shared_bytes + limits.block_reserve),
    )
