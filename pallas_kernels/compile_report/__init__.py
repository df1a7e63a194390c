"""Reports of what the compilers for TPUs and Hopper GPUs make of a kernel, without hardware.

`compile_for`, `lower_for_tpu` and `lower_for_h100` are for tests; `tpu_reports` say what a program
would cost on a TPU, `h100_reports` what the assembler makes of its kernels; `kernel_traffic` counts
the bytes that move. docs/kernels.md explains how to read the reports.
"""

from pallas_kernels.compile_report.compilation import (
    CompilerUnavailableError,
    compile_for,
    h100_device,
    lower_for_h100,
    lower_for_tpu,
    tpu_devices,
)
from pallas_kernels.compile_report.gpu.report import (
    H100KernelReport,
    H100Report,
    h100_reports,
)
from pallas_kernels.compile_report.program import Program, ProgramReference
from pallas_kernels.compile_report.tpu.report import (
    KernelReport,
    TpuReport,
    tpu_reports,
)
from pallas_kernels.compile_report.traffic import KernelTraffic, kernel_traffic
from pallas_kernels.compile_report.worker_process import CompileError

__all__ = [
    "CompileError",
    "CompilerUnavailableError",
    "H100KernelReport",
    "H100Report",
    "KernelReport",
    "KernelTraffic",
    "Program",
    "ProgramReference",
    "TpuReport",
    "compile_for",
    "h100_device",
    "h100_reports",
    "kernel_traffic",
    "lower_for_h100",
    "lower_for_tpu",
    "tpu_devices",
    "tpu_reports",
]
