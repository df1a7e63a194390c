"""What the compilers for TPUs and Hopper GPUs make of a kernel, read without the hardware."""

from pallas_kernels.compile_report.compilation import (
    CompilerUnavailableError,
    compile_for,
    h100_device,
    lower_for_h100,
    lower_for_tpu,
    tpu_devices,
)

__all__ = [
    "CompilerUnavailableError",
    "compile_for",
    "h100_device",
    "lower_for_h100",
    "lower_for_tpu",
    "tpu_devices",
]
