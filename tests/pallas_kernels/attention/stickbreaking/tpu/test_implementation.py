"""The kernels for TPUs in interpret mode: numerics, races, options.

The whole contract runs in `make verify`; here are cases that between them meet every option.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.pallas.mosaic.interpret import interpret_pallas_call  # where races are reported
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.attention.shared.block_sizes import BlockSizes
from pallas_kernels.attention.shared.masks import Visibility
from pallas_kernels.attention.stickbreaking.tpu import block_sizes
from pallas_kernels.attention.stickbreaking.tpu import implementation as tpu
from pallas_kernels.attention.stickbreaking.tpu.block_sizes import TpuBlockSizes, compiling_for
from tests.contracts import exact_attention
from tests.contracts.containment import (
    POISONS,
    assert_contained,
    assert_early_exit_limits_what_is_lost,
)
from tests.contracts.stickbreaking_attention import (
    CASES as ALL_CASES,
)
from tests.contracts.stickbreaking_attention import (
    NAMES,
    Case,
    StickbreakingAttentionContract,
    assert_close,
    assert_saturated,
    early_exit_bounds,
    oracle,
    run,
)
from tests.contracts.sweep import sweep

# Small, so that walks are long; of two shapes, so that the kernels share nothing by chance.
SMALL = TpuBlockSizes(forward=BlockSizes(128, 128), backward=BlockSizes(128, 128))
MIXED = TpuBlockSizes(forward=BlockSizes(128, 256), backward=BlockSizes(256, 128))


@pytest.fixture(name="interpreted")
def _interpreted():
    params = pltpu.InterpretParams(detect_races=True, dma_execution_mode="eager")
    with pltpu.force_tpu_interpret_mode(params), compiling_for(blocks=SMALL):
        yield
    assert not races(), "the kernels have no races"


def races() -> bool:
    state = interpret_pallas_call.races
    return state is not None and bool(state.races_found)


@pytest.mark.verify
@pytest.mark.usefixtures("interpreted")
class TestTpu(StickbreakingAttentionContract):
    implementation = "tpu"


LOGIT = 20.3
CASES = {
    # Every option, grouped queries, odd sizes, two blocks of rows and of keys.
    "everything": dataclasses.replace(
        ALL_CASES["everything"], batch=1, query_length=150, key_length=250
    ),
    # Compiled once with the test of logits that take the whole stick.
    "bfloat16": Case(1, 128, 128, 1, 1, 32, 32, jnp.bfloat16, options=(("scale", LOGIT / 32),)),
    "segments_and_padding": Case(
        1, 150, 150, 6, 2, 20, 24, padding=True, segments=True, options=(("scale", 0.3),)
    ),
    "window": Case(
        1,
        70,
        400,
        2,
        1,
        16,
        9,
        options=(("window", 177), ("query_offset", 220), ("attend_current", True)),
    ),
    "bfloat16_in_blocks": Case(1, 300, 300, 1, 1, 16, 16, dtype=jnp.bfloat16),
}


@pytest.mark.usefixtures("interpreted")
@sweep("name", CASES, ["everything", "bfloat16"])
def test_agrees_with_float64(name: str) -> None:
    case = CASES[name]
    arrays, options = case.make()
    actual = run("tpu", arrays, options, case.dtype)
    tolerance = 1e-5 if case.dtype == np.float32 else 1e-2
    for label, mine, exact in zip(NAMES, actual, oracle(case), strict=True):
        assert_close(mine, exact, tolerance, label)


@pytest.mark.usefixtures("interpreted")
def test_early_exit_stays_within_its_bounds() -> None:
    case, tolerance = Case(1, 300, 300, 1, 1), 0.1
    arrays, options = case.make()
    # Each key takes a twentieth, so that what is passed over shows.
    arrays[0][..., 0], arrays[1][..., 0] = 1.0, -12.0
    actual = run("tpu", arrays, options | {"tolerance": tolerance}, np.float32)
    exact = exact_attention.stickbreaking(arrays, options)
    differences = []
    for label, mine, expected, bound in zip(
        NAMES, actual, exact, early_exit_bounds(arrays, options, tolerance), strict=True
    ):
        assert np.isfinite(mine).all(), label
        difference = np.abs(mine - expected)
        assert (difference <= bound + 1e-5 * np.abs(expected).max()).all(), label
        differences.append(difference.max())
    assert differences[0] > 1e-4, "something was passed over"


@pytest.mark.usefixtures("interpreted")
def test_rows_visit_no_more_blocks_than_the_tolerance_asks_for() -> None:
    # Each key takes half of the stick. The first row of a block sees one key of its nearest block,
    # and 129 and 257 in all with the next ones.
    ones, zeros = jnp.ones((1, 512, 1, 8)), jnp.zeros((1, 512, 1, 8))
    _, remainder, visited = jax.jit(
        functools.partial(tpu.attend_and_count, scale=1.0, tolerance=2.0**-100)
    )(zeros, ones, ones, Visibility(0))
    np.testing.assert_array_equal(visited[0, ::128, 0], [1, 2, 2, 2])
    np.testing.assert_allclose(remainder[0, 99, 0], 2.0**-100, rtol=1e-5)


@pytest.mark.usefixtures("interpreted")
def test_extreme_logits() -> None:
    size = 1e30
    random = np.random.default_rng(6)
    query = np.sign(random.integers(-1, 2, (1, 100, 1, 1))).astype(np.float64)
    key = random.choice([-size, 0.0, 0.0, size], (1, 100, 1, 1), p=[0.6, 0.15, 0.15, 0.1])
    value, d_output = (random.standard_normal((1, 100, 1, 3)) for _ in "vo")
    arrays = (query, key.astype(np.float32), value, d_output, random.standard_normal((1, 100, 1)))
    options = {"attend_current": True, "scale": 1.0}
    actual = run("tpu", arrays, options, jnp.float32, optimised=True)
    for label, mine, expected in zip(
        NAMES, actual, exact_attention.stickbreaking(arrays, options), strict=True
    ):
        assert np.isfinite(mine).all(), label
        if label != "d_query":  # A rounding error of 1e-7 times such a key is no small number.
            assert_close(mine, expected, 1e-5, label)


@pytest.mark.usefixtures("interpreted")
def test_logits_that_take_the_whole_stick_have_no_gradient() -> None:
    assert_saturated(functools.partial(run, "tpu", dtype=jnp.bfloat16), LOGIT)


@pytest.mark.verify
@pytest.mark.usefixtures("interpreted")
def test_keys_in_several_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(1, 300, 300, 2, 1, padding=True, segments=True, options=(("window", 200),))
    arrays, options = case.make()
    whole = run("tpu", arrays, options, np.float32)
    monkeypatch.setattr(tpu, "keys_at_a_time", lambda keys, block, widths: block)
    jax.clear_caches()
    parts = run("tpu", arrays, options, np.float32)
    for label, mine, expected in zip(NAMES, parts, whole, strict=True):
        assert_close(mine, expected, 1e-6, label)


@pytest.mark.verify
@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("tolerance", [0.0, 0.02])
def test_kernels_may_have_blocks_of_their_own(tolerance: float) -> None:
    case = Case(1, 300, 500, 2, 1, segments=True, options=(("tolerance", tolerance),))
    arrays, options = case.make()
    jax.clear_caches()
    with compiling_for(blocks=MIXED):
        actual = run("tpu", arrays, options, np.float32)
    if tolerance:
        bounds = early_exit_bounds(arrays, options, tolerance)
    else:
        bounds = [np.zeros(()) for _ in NAMES]
    exact = exact_attention.stickbreaking(
        arrays, {k: v for k, v in options.items() if k != "tolerance"}
    )
    for label, mine, expected, bound in zip(NAMES, actual, exact, bounds, strict=True):
        assert (np.abs(mine - expected) <= bound + 2e-5 * np.abs(expected).max()).all(), label


@pytest.mark.verify
@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 1e-2)])
@pytest.mark.parametrize("shift", [0.0, -9.0])
def test_long_rows(dtype: str, tolerance: float, shift: float) -> None:
    """16,384 keys; with the shift none takes more than a hair of the stick, and all count."""
    random = np.random.default_rng(1)
    length, queries, width = 16384, 8, 16
    arrays = [random.standard_normal((1, n, 1, width)) for n in (queries, length, length, queries)]
    arrays[0][..., 0], arrays[1][..., 0] = 1.0, shift * np.sqrt(width)
    arrays = [np.asarray(jnp.asarray(a, dtype), np.float64) for a in arrays]
    arrays.append(random.standard_normal((1, queries, 1)))
    exact = exact_attention.stickbreaking(arrays, {})
    with compiling_for(blocks=TpuBlockSizes(BlockSizes(128, 512), BlockSizes(128, 512))):
        actual = run("tpu", arrays, {}, jnp.dtype(dtype))
    for label, mine, expected in zip(NAMES, actual, exact, strict=True):
        assert_close(mine, expected, tolerance, label)


@pytest.mark.usefixtures("interpreted")
@sweep("rules", ["", "segments", "window"], [""])
def test_what_is_not_finite_reaches_what_sees_it(rules: str) -> None:
    for name in POISONS:
        assert_contained("stickbreaking", "tpu", name, rules=rules)


@pytest.mark.usefixtures("interpreted")
def test_early_exit_limits_what_is_lost() -> None:
    assert_early_exit_limits_what_is_lost("tpu", far=128)


def test_block_sizes_are_checked() -> None:
    with pytest.raises(ValueError, match=r"backward.*128.*query=100"):
        TpuBlockSizes(forward=BlockSizes(128, 128), backward=BlockSizes(100, 128))
    with pytest.raises(ValueError, match="'v3' is unknown"), compiling_for("v3"):
        pass


@pytest.mark.parametrize("generation", block_sizes.GENERATIONS)
@pytest.mark.parametrize("width", [32, 128, 256, 1024])
def test_gradients_in_vmem_leave_half_of_it(generation: str, width: int) -> None:
    with compiling_for(generation):
        sizes = block_sizes.tpu_block_sizes(32768, 32768, width, 2)
        keys = block_sizes.keys_at_a_time(32768, sizes.backward.key, 2 * width)
        vmem = block_sizes.generation_in_force().vmem
    assert keys % sizes.backward.key == 0
    assert keys * 2 * width * 4 <= vmem // 2
