"""Effort of compiling, and assertions on how often it happens."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import chex
import pytest

# Options of `jax.jit` for a program that runs once or twice on little data: code that LLVM does not
# optimise computes the same to rounding, and compiles in half the time. Not where bits of different
# programs, memory or compiled text are compared. For what the library compiles by itself there is
# the fixture `quick_compilation`, within which a function that needs it asks for OPTIMISED.
QUICK = {"xla_backend_optimization_level": 0}
OPTIMISED = {"xla_backend_optimization_level": 3, "xla_llvm_disable_expensive_passes": False}


@contextlib.contextmanager
def max_traces(owner: Any, name: str, most: int) -> Iterator[None]:
    """Within the block, `owner.name` may be traced at most so often, whoever compiles it.

    Raises:
      AssertionError: from the call that traces once too often.
    """
    chex.clear_trace_counter()  # the counter is of the whole process
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, chex.assert_max_traces(getattr(owner, name), most))
        yield
