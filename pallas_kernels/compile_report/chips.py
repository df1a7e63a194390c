"""Published figures of the chips that programs are compiled for."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class TpuChip:
    """One TPU generation, as one jax device sees it.

    Attributes:
        name: the generation.
        topology: a small topology of it, for `compilation.tpu_devices`.
        cores: TensorCores of one jax device. Two are *megacore*: a grid axis that is declared
            parallel is split between them.
        clock: bundles per second and core.
        matmul_flops: peak bfloat16 FLOP/s of one jax device.
        hbm_bandwidth: bytes per second of one jax device.
        vmem: bytes per core.
        branch_delay: bundles that still run after a branch.
        source: where the figures are published, and what is derived.
    """

    name: str
    topology: str
    cores: int
    clock: float
    matmul_flops: float
    hbm_bandwidth: float
    vmem: int
    branch_delay: int
    source: str


# Peak rates and bandwidths: the pages cloud.google.com/tpu/docs/{v5e,v5p,v6e,tpu7x}; VMEM: the
# table in jax's jax/_src/tpu_info.py. Clocks are not published there. They follow from the peak:
# FLOP/s / (cores * matrix units * rows * columns * 2), with 4 units of 128x128 (v5e, v5p), or 2 of
# 256x256 that take two rows a cycle (v6e and tpu7x: what the compiler's own schedules assume).
_PAGES = "cloud.google.com/tpu/docs/{}; clock derived from the peak rate"
TPU_CHIPS = {
    chip.name: chip
    for chip in (
        TpuChip("v5e", "v5e:2x2", 1, 1.503e9, 197e12, 819e9, 128 << 20, 4, _PAGES.format("v5e")),
        TpuChip("v5p", "v5p:2x2x1", 2, 1.751e9, 459e12, 2765e9, 64 << 20, 4, _PAGES.format("v5p")),
        TpuChip("v6e", "v6e:2x2", 1, 1.751e9, 918e12, 1638e9, 128 << 20, 4, _PAGES.format("v6e")),
        # A jax device is one of the chip's two cores.
        TpuChip(
            "tpu7x",
            "tpu7x:2x2x1",
            1,
            2.2e9,
            1153.5e12,
            3690e9,
            64 << 20,
            1,
            _PAGES.format("tpu7x"),
        ),
    )
}


def find_chip(name: str) -> TpuChip:
    """The chip of that name.

    Raises:
        ValueError: there is none.
    """
    if name not in TPU_CHIPS:
        raise ValueError(f"generation={name!r} is unknown; known are {', '.join(TPU_CHIPS)}")
    return TPU_CHIPS[name]


@dataclasses.dataclass(frozen=True)
class Hopper:
    """Limits of one Hopper multiprocessor (CUDA C++ Programming Guide, compute capability 9.0).

    Attributes:
        registers: 32-bit registers.
        threads: resident threads.
        blocks: resident blocks.
        shared_memory: bytes.
        block_reserve: bytes of shared memory that the system keeps for each block.
        register_unit: registers are given to warps in multiples of this.
    """

    registers: int = 65536
    threads: int = 2048
    blocks: int = 32
    shared_memory: int = 228 * 1024
    block_reserve: int = 1024
    register_unit: int = 256
    warp: int = 32
