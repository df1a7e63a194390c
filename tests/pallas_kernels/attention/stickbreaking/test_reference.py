from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from pallas_kernels.attention.stickbreaking import stickbreaking_attention
from tests.contracts.stickbreaking_attention import (
    CASES,
    NAMES,
    StickbreakingAttentionContract,
    assert_close,
    oracle,
    run,
)


# Below it is checked in float64; how it rounds in float32 is nobody's default.
@pytest.mark.verify
class TestReference(StickbreakingAttentionContract):
    implementation = "reference"


def test_gradients_agree_with_formulas() -> None:
    """With every option; in numpy, where all other implementations are compared with them."""
    case = CASES["everything"]
    with jax.enable_x64(True):
        found = run("reference", *case.make(), jnp.float64)
    for label, mine, exact in zip(NAMES, found, oracle(case), strict=True):
        assert_close(mine, exact, 1e-13, label)


@pytest.mark.parametrize("attend_current", [False, True])
@pytest.mark.parametrize("window", [None, 4])
def test_is_the_breaking_of_a_stick(attend_current: bool, window: int | None) -> None:
    random = np.random.default_rng(0)
    query, key, value = (random.standard_normal((1, 9, 1, 5)) for _ in range(3))
    mask = random.random((1, 9)) < 0.8
    with jax.enable_x64(True):
        output, remainder = stickbreaking_attention(
            *(jnp.asarray(x) for x in (query, key, value)),
            attend_current=attend_current,
            window=window,
            key_mask=jnp.asarray(mask),
            implementation="reference",
        )
    for i in range(9):
        stick, expected = 1.0, np.zeros(5)
        for j in range(i if attend_current else i - 1, -1, -1):
            if not mask[0, j] or (window is not None and i - j >= window):
                continue
            logit = query[0, i, 0] @ key[0, j, 0] / math.sqrt(5)
            share = 1 / (1 + math.exp(-logit))
            expected += stick * share * value[0, j, 0]
            stick *= 1 - share
        np.testing.assert_allclose(output[0, i, 0], expected, atol=1e-12)
        np.testing.assert_allclose(remainder[0, i, 0], stick, rtol=1e-12)


def test_gradients_by_finite_differences() -> None:
    random = np.random.default_rng(1)
    with jax.enable_x64(True):
        arrays = [jnp.asarray(random.standard_normal((1, 6, 2, 3))) for _ in range(3)]
        check_grads(
            jax.jit(lambda *x: tuple(stickbreaking_attention(*x, implementation="reference"))),
            arrays,
            order=1,
            modes=["rev"],
        )
