"""Ground of every test: the CPU, and one cache of compiled programs.

The cache is shared by the workers, by the processes that tests start, and by later runs: compiling
a small model again took 2.3 s of processor time instead of 14.5 s. A cached program gives the same
bits and the same memory analysis. `make clean` removes the cache.
"""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".jax_cache"))
# Kernels are simulated with a thread of XLA for each warpgroup, also while it waits for another: on
# few cores XLA has too few, and they wait for ever.
os.environ.setdefault("NPROC", "32")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

MOST_MAPS = 20_000

pytest_plugins = ["tests.processor_time"]

# How long an example takes says nothing about the code where workers share the cores.
hypothesis.settings.register_profile("shared_cores", deadline=None)
hypothesis.settings.load_profile("shared_cores")


@pytest.fixture(scope="module", autouse=True)
def _few_programs() -> Iterator[None]:
    """Forgets compiled programs before they are too many for a process.

    Each of them maps some nine pieces of memory, of which Linux lets a process have 65,530: beyond
    that, compiling ends with a segmentation fault.
    """
    yield
    maps = Path("/proc/self/maps")
    if "jax" in sys.modules and maps.exists() and maps.read_text().count("\n") > MOST_MAPS:
        sys.modules["jax"].clear_caches()


@pytest.fixture(scope="module")
def quick_compilation() -> Iterator[None]:
    """Compiles without optimisation in a module; see `tests/compilation.py` for where not to."""
    import jax  # reads the variables above

    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
