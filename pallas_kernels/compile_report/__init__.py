"""What the compilers for TPUs and Hopper GPUs make of a kernel, read without the hardware.

`compile_for`, `lower_for_tpu` and `lower_for_h100` are for tests; `tpu_report` says what a program
would cost on a TPU; `kernel_traffic` counts the bytes that it moves. docs/kernels.md explains how
to read the report.
"""

from pallas_kernels.compile_report.compilation import (
    CompilerUnavailableError,
    compile_for,
    h100_device,
    lower_for_h100,
    lower_for_tpu,
    tpu_devices,
)
from pallas_kernels.compile_report.program import Program, ProgramReference
from pallas_kernels.compile_report.tpu_report import (
    CompileError,
    KernelReport,
    TpuReport,
    tpu_report,
    tpu_reports,
)
from pallas_kernels.compile_report.traffic import KernelTraffic, kernel_traffic

__all__ = [
    "CompileError",
    "CompilerUnavailableError",
    "KernelReport",
    "KernelTraffic",
    "Program",
    "ProgramReference",
    "TpuReport",
    "compile_for",
    "h100_device",
    "kernel_traffic",
    "lower_for_h100",
    "lower_for_tpu",
    "tpu_devices",
    "tpu_report",
    "tpu_reports",
]
