"""Peak rate of this machine's devices, which utilisation is measured against."""

from __future__ import annotations

import datetime
import functools
import os
import platform
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

# Dense matrix products per second and device, from the vendors' data sheets (bfloat16, no
# sparsity).
PEAK_FLOPS = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
}


def enable_compilation_cache() -> None:
    """Keeps compiled programs between starts: `JAX_COMPILATION_CACHE_DIR` or the user's cache."""
    if jax.config.jax_compilation_cache_dir is None:
        home = os.environ.get("XDG_CACHE_HOME", os.path.expanduser("~/.cache"))
        jax.config.update("jax_compilation_cache_dir", os.path.join(home, "modbrick", "jax"))


def process_start() -> float:
    """Returns when this process began, in seconds since the epoch (Linux; to 10 ms)."""
    # Fields after the name, which may hold anything: the 20th is ticks after the machine's start.
    ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    return time.time() - max(age, 0.0)


@functools.cache
def peak_flops() -> float:
    """Returns floating-point operations per second of one device.

    From data sheets where the device is known, otherwise the float32 rate of a dense product,
    measured.
    """
    device = jax.devices()[0]
    known = [name for name in PEAK_FLOPS if device.device_kind.startswith(name)]
    if known:
        return PEAK_FLOPS[max(known, key=len)]
    return measured_flops()


def measured_flops(size: int = 1024, repeats: int = 5) -> float:
    """Returns the best rate of a dense float32 `[size, size]` product, operations per second."""
    matrix = jax.random.normal(jax.random.key(0), (size, size), jnp.float32)
    product = jax.jit(lambda a: jnp.matmul(a, a, precision=jax.lax.Precision.HIGHEST))
    product(matrix).block_until_ready()
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        product(matrix).block_until_ready()
        best = min(best, time.perf_counter() - start)
    return 2.0 * size**3 / best


def describe_machine() -> dict[str, Any]:
    """Returns date, machine and versions, JSON-able: what belongs to every measured figure."""
    cpuinfo = Path("/proc/cpuinfo")
    names = [
        line.split(":", 1)[1].strip()
        for line in (cpuinfo.read_text().splitlines() if cpuinfo.exists() else [])
        if line.startswith("model name")
    ]
    return {
        "date": datetime.date.today().isoformat(),
        "machine": {
            "processor": names[0] if names else platform.processor(),
            "cores": os.cpu_count(),
            "devices": sorted({device.device_kind for device in jax.devices()}),
        },
        "versions": {"python": platform.python_version(), "jax": jax.__version__},
    }
