"""Bytes that a program moves from and to HBM, counted rather than declared."""

from pallas_kernels.compile_report.traffic.count import (
    KernelTraffic,
    kernel_traffic,
    program_traffic,
)

__all__ = ["KernelTraffic", "kernel_traffic", "program_traffic"]
