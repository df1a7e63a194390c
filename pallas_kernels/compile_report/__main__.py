"""Prints the report of one program.

python -m pallas_kernels.compile_report BUILDER TARGET [ARGUMENTS]

BUILDER is package.module:function or file.py:function; the function returns a `Program`. ARGUMENTS
is a JSON object of its keyword arguments. TARGET is a TPU generation (v5e, v5p, v6e, tpu7x), or
h100.
"""

from __future__ import annotations

import dataclasses
import json
import sys

from pallas_kernels.compile_report.gpu.report import h100_report
from pallas_kernels.compile_report.program import ProgramReference
from pallas_kernels.compile_report.tpu.report import KernelReport, tpu_report
from pallas_kernels.compile_report.worker_process import CompileError


def main(arguments: list[str]) -> int:
    """Reports and returns the exit status."""
    if len(arguments) not in (2, 3):
        print(__doc__, file=sys.stderr)
        return 2
    builder, target, *rest = arguments
    try:
        program = ProgramReference(builder, json.loads(rest[0]) if rest else {})
        if target == "h100":
            for h100_kernel in h100_report(program).kernels:
                print(json.dumps(dataclasses.asdict(h100_kernel)))
            return 0
        report = tpu_report(target, program)
    except (CompileError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(
        f"{target}: {report.hbm_bytes / 2**20:,.1f} MiB moved, "
        f"{report.temp_bytes / 2**20:,.1f} MiB temporary, "
        f"predicted {report.predicted_seconds * 1e6:,.1f} us"
    )
    for category, size in sorted(report.bytes_by_category.items()):
        print(f"  {category:8} {size / 2**20:12,.2f} MiB")
    for kernel in report.kernels:
        print("\n".join(_lines(kernel)))
    return 0


def _lines(kernel: KernelReport) -> list[str]:
    limits = ", ".join(f"{name} {1e6 * s:,.1f}" for name, s in kernel.seconds.items())
    used = ", ".join(f"{unit} {use:.0%}" for unit, use in kernel.unit_use.items() if use > 0.005)
    return [
        f"{kernel.name}: grid {kernel.grid}, {kernel.calls} calls"
        + ("" if kernel.exact else ", trip counts not all known"),
        f"  bundles {kernel.bundles:,}; inner loop {kernel.loop_bundles:,}, "
        f"MATMUL slots {kernel.matmul_use:.1%}; parts that multiply {kernel.matmul_bundles}, "
        f"run {kernel.matmul_runs} times",
        f"  slots used in the inner loop: {used}",
        f"  spills {kernel.spills:,}; VMEM {kernel.vmem_bytes / 2**20:.2f} MiB; "
        f"moved {kernel.hbm_bytes / 2**20:,.2f} MiB in {kernel.copies:,} copies",
        f"  us by limit: {limits}",
    ]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
