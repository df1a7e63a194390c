"""Kernels are simulated and compared once on little data: compiled without optimisation.

The few results that only optimised code promises ask for `OPTIMISED`, see `tests/compilation.py`.
"""

import pytest


@pytest.fixture(scope="module", autouse=True)
def quickly(quick_compilation: None) -> None:
    """Compiles every module of this folder so."""
