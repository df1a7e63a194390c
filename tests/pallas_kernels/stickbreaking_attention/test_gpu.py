"""The kernels for Hopper GPUs, simulated with detection of races, lowered and compiled."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.stickbreaking_attention import gpu_registers, stickbreaking_attention
from tests.contracts.stickbreaking_attention import CASES, assert_close, oracle


@pytest.mark.parametrize(
    "name",
    ["attend_current", "segments_and_padding", "window", "more_queries", "offset", "one_query"],
)
def test_forward_agrees_with_float64(name: str) -> None:
    case = dataclasses.replace(CASES[name], dtype=jnp.bfloat16, batch=1)
    (query, key, value, *_), options = case.make()
    arrays = [jnp.asarray(x, jnp.bfloat16) for x in (query, key, value)]
    with gpu_registers.simulated(detect_races=True):
        call = functools.partial(stickbreaking_attention, implementation="gpu", **options)
        output, remainder = jax.jit(call)(*arrays)
    exact = oracle(case)
    assert_close(np.asarray(output, np.float64), exact[0], 1e-2, "output")
    assert_close(np.asarray(remainder, np.float64), exact[1], 1e-5, "remainder")
