"""The kernels for TPUs in interpret mode: numerics, races, bounds.

The whole contract, on both ways through the kernels, runs in `make verify`; here is one case of
each kernel.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import re
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.pallas.mosaic.interpret import interpret_pallas_call  # where races are reported
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels import grouped_matmul as op
from pallas_kernels.compile_report import lower_for_tpu
from pallas_kernels.grouped_matmul.implementations import Case
from pallas_kernels.grouped_matmul.tpu import feed_forward as tpu_feed_forward
from pallas_kernels.grouped_matmul.tpu import implementation as tpu
from pallas_kernels.grouped_matmul.tpu import matmul as tpu_matmul
from pallas_kernels.grouped_matmul.tpu.block_sizes import KERNELS, BlockSizes, compiling_for
from tests.contracts.grouped_matmul import (
    GroupedMatmulContract,
    Shape,
    assert_close,
    feed_forward_oracle,
    problem,
)

SMALL = dict.fromkeys(KERNELS, BlockSizes(16, 1024, 128))
# T, K, E, D, F: no multiples of a tile, several tiles, experts that share tiles.
BRIEF: Shape = (11, 2, 3, 20, 33)
TINY: Shape = (5, 2, 2, 20, 33)  # where one tile is enough


@contextlib.contextmanager
def _interpreted_by(cores: int) -> Iterator[None]:
    params = pltpu.InterpretParams(
        detect_races=True, dma_execution_mode="eager", num_cores_or_threads=cores
    )
    with pltpu.force_tpu_interpret_mode(params), compiling_for("v5p", SMALL):
        yield


@pytest.fixture(name="interpreted")
def _interpreted():
    with _interpreted_by(cores=2):
        yield


@pytest.fixture(name="interpreted_by_a_core")
def _interpreted_by_a_core():
    """Each core compiles its kernels anew; the work of two is done by one."""
    with _interpreted_by(cores=1):
        yield


@pytest.fixture(name="streamed")
def _streamed(monkeypatch):
    """As if no expert's matrices fitted into VMEM."""
    monkeypatch.setattr(tpu.Footprint, "buffers", lambda self, budget: None)


class _WeightStationary(GroupedMatmulContract):
    implementation = "tpu"

    # The interpreter's callbacks have effects that `jax.checkpoint` refuses: lowered, below.
    @pytest.mark.parametrize("wrap", [lambda layer: layer], ids=[""])
    def test_it_composes_with_scan_over_layers(self, wrap):
        super().test_it_composes_with_scan_over_layers(wrap)


class _Streamed(_WeightStationary):
    """The same, with its own name: what was compiled is kept for each."""


@pytest.mark.verify
@pytest.mark.timeout(1800)  # 256 experts with races looked for take minutes
@pytest.mark.usefixtures("interpreted")
class TestTpu(_WeightStationary):
    pass


@pytest.mark.verify
@pytest.mark.timeout(1800)  # 256 experts with races looked for take minutes
@pytest.mark.usefixtures("interpreted", "streamed")
class TestTpuStreamed(_WeightStationary):
    pass


def _races() -> bool:
    state = interpret_pallas_call.races
    assert state is not None, "races are looked for"
    return bool(state.races_found)


def _assert_matmul(contract: GroupedMatmulContract, input_layout: str, output_layout: str) -> None:
    p = problem(BRIEF)
    results = contract.matmul_results(p, input_layout, output_layout)
    for name, expected in contract.matmul_expected(p, input_layout, output_layout).items():
        assert_close(name, results[name], expected, 2e-6)
    assert not _races()


@pytest.mark.usefixtures("interpreted")
def test_a_reduce_sums_slots():
    _assert_matmul(_WeightStationary(), "slots", "tokens")


@pytest.mark.verify
@pytest.mark.usefixtures("interpreted")
def test_a_map_reads_tokens():
    _assert_matmul(_WeightStationary(), "tokens", "slots")


@pytest.mark.verify
@pytest.mark.usefixtures("interpreted", "streamed")
def test_matrices_that_do_not_fit_are_streamed():
    _assert_matmul(_Streamed(), "grouped", "tokens")


@pytest.mark.verify
@pytest.mark.usefixtures("interpreted", "streamed")
@pytest.mark.parametrize("shape", [(5, 2, 2, 2048, 40), (5, 2, 2, 40, 2500)], ids=str)
def test_deep_and_wide_matrices_are_cut(monkeypatch, shape):
    """Sums over K in pieces; results in column blocks of which the last is ragged."""
    monkeypatch.setattr(tpu_matmul, "bank_budget", lambda: 1024 * 1024 * 4)
    p = problem(shape)
    for layout in ("tokens", "grouped"):
        results = _Streamed().matmul_results(p, layout, "tokens")
        for name, expected in _Streamed().matmul_expected(p, layout, "tokens").items():
            assert_close(name, results[name], expected, 2e-6)


@pytest.mark.verify
@pytest.mark.usefixtures("interpreted", "streamed")
def test_hidden_layers_come_in_narrow_blocks(monkeypatch):
    """Two blocks of 128 columns, the second ragged."""
    monkeypatch.setattr(tpu_feed_forward, "bank_budget", lambda: 60 * 4 * 128)
    p = problem((5, 2, 2, 20, 200))
    results = _Streamed().feed_forward_results(p, "silu", True)
    for name, expected in feed_forward_oracle(p, "silu", True).items():
        assert_close(name, results[name], expected, 5e-6)


@pytest.mark.verify
@pytest.mark.usefixtures("streamed")
def test_wide_hidden_layers_come_in_pieces():
    """Three pieces, the last a narrower one: what each writes stays beside what others wrote."""
    assert [p.width for p in tpu_feed_forward.hidden_pieces(5120)] == [2048, 2048, 1024]
    params = pltpu.InterpretParams(detect_races=True, num_cores_or_threads=2)
    sizes = dict.fromkeys(KERNELS, BlockSizes(16, 1024, 1024))
    with pltpu.force_tpu_interpret_mode(params), compiling_for("v5p", sizes):
        p = problem((5, 2, 2, 20, 5120))
        results = _Streamed().feed_forward_results(p, "silu", True)
    for name, expected in feed_forward_oracle(p, "silu", True).items():
        assert_close(name, results[name], expected, 5e-6)
    assert not _races()


@pytest.mark.parametrize(
    ("width", "widths"),
    [
        (33, [33]),
        (2048, [2048]),
        (4000, [4000]),  # no multiple of whole blocks
        (4096, [1024] * 4),
        (5120, [2048, 2048, 1024]),
        (14336, [4096, 4096, 4096, 2048]),
        (16384, [4096] * 4),
    ],
)
def test_pieces_of_hidden_layers_begin_where_blocks_do(width, widths):
    pieces = tpu_feed_forward.hidden_pieces(width)
    assert [piece.width for piece in pieces] == widths
    assert [piece.first for piece in pieces] == [sum(widths[:i]) for i in range(len(widths))]
    for piece in pieces:
        assert piece.at(piece.most) * piece.most == piece.first
        assert piece.width % piece.most == 0


def _assert_feed_forward(
    contract: GroupedMatmulContract, activation: str, gated: bool, dtype: Any, tolerance: float
) -> None:
    p = problem(BRIEF, seed=2)
    results = contract.feed_forward_results(p, activation, gated, dtype)
    for name, expected in feed_forward_oracle(p, activation, gated).items():
        assert_close(name, results[name], expected, tolerance)
    assert not _races()


@pytest.mark.usefixtures("interpreted_by_a_core")
def test_feed_forward_with_stationary_weights():
    _assert_feed_forward(_WeightStationary(), "silu", True, np.float32, 5e-6)


@pytest.mark.usefixtures("interpreted_by_a_core", "streamed")
def test_feed_forward_with_streamed_matrices():
    _assert_feed_forward(_Streamed(), "gelu_tanh", False, jnp.bfloat16, 2e-2)


def _kernels_of_layers(wrap: Callable[..., Any]) -> collections.Counter[str]:
    """Counts of each kernel in a scan over layers and its gradients, lowered."""
    layer, chosen, arguments = _WeightStationary().layers()
    with compiling_for("v5p", SMALL):
        gradients = _WeightStationary().gradients_of_a_scan(wrap(layer), chosen)
        text = lower_for_tpu(gradients, *arguments)
    return collections.Counter(re.findall(r'kernel_name = "(\w+)"', text))


def _assert_computed_again(gradients: dict[str, int]) -> None:
    """Forward kernels once more, but those that no gradient reads; those of gradients once."""
    kept, again = _kernels_of_layers(lambda layer: layer), _kernels_of_layers(jax.checkpoint)
    # Inputs and cotangents of three operations are packed, once each.
    assert kept["grouped_matmul_row_words"] == 6
    assert again - kept == {
        "grouped_matmul_row_words": 3,
        "grouped_matmul_products": 2,
        "grouped_matmul_to_slots": 1,
        "grouped_matmul_to_tokens": 1,
    }
    assert not kept - again
    assert {name: n for name, n in again.items() if "gradient" in name} == gradients


def test_layers_that_are_computed_again_lower():
    _assert_computed_again(
        {"grouped_matmul_resident_gradients": 2, "grouped_feed_forward_resident_gradients": 1}
    )


@pytest.mark.verify
@pytest.mark.usefixtures("streamed")
def test_streamed_layers_that_are_computed_again_lower():
    _assert_computed_again(
        {
            "grouped_matmul_input_gradient": 2,
            "grouped_matmul_weight_gradient": 2,
            "grouped_feed_forward_hidden_gradients": 1,
            "grouped_feed_forward_input_gradient": 1,
            "grouped_feed_forward_weight_gradient": 2,
        }
    )


@pytest.mark.usefixtures("interpreted_by_a_core")
def test_inputs_are_packed_one_after_the_other():
    p = problem(BRIEF)
    both = jnp.asarray(np.stack([p.tokens, 2 * p.tokens]), jnp.float32)
    packed = jax.vmap(functools.partial(tpu._readable, layout="tokens"))(both)
    for mine, rows in zip(packed, both, strict=True):
        width = rows.shape[1]
        np.testing.assert_array_equal(mine[0, :, :width], rows)


@pytest.mark.verify
@pytest.mark.usefixtures("interpreted_by_a_core")
def test_results_of_other_dtypes_are_rounded_float32():
    p = problem(TINY)

    @jax.jit
    def run(inputs, weights, plan):
        results = []
        for dtype in (jnp.float32, jnp.float16):

            def call(inputs, dtype=dtype):
                return op.grouped_matmul(
                    inputs,
                    weights,
                    plan,
                    output_layout="slots",
                    implementation="tpu",
                    preferred_element_type=dtype,
                )

            outputs, pull = jax.vjp(call, inputs)
            results.append((outputs, *pull(jnp.ones_like(outputs))))
        return results

    inputs, weights = (jnp.asarray(x, jnp.float32) for x in (p.tokens, p.weights))
    (whole, expected), (half, gradient) = run(inputs, weights, p.plan)
    np.testing.assert_array_equal(half, whole.astype(jnp.float16))
    assert gradient.dtype == jnp.float32
    np.testing.assert_array_equal(gradient, expected)


@pytest.mark.usefixtures("interpreted_by_a_core")
def test_a_forged_plan_reads_and_writes_within_bounds():
    """Interpret mode raises on any access out of bounds."""
    p = problem(TINY)
    wild = jnp.array([2**30, -(2**30)] * p.slots.shape[0], jnp.int32)
    plan = dataclasses.replace(p.plan, order=wild, inverse=wild)
    outputs = jax.jit(
        functools.partial(op.grouped_matmul, output_layout="tokens", implementation="tpu")
    )(
        jnp.asarray(p.tokens, jnp.float32),
        jnp.asarray(p.weights, jnp.float32),
        plan,
        gates=jnp.asarray(p.gates, jnp.float32),
    )
    assert np.isfinite(np.asarray(outputs)).all()


def test_outside_of_interpret_mode_a_cpu_refuses():
    p = problem((4, 1, 2, 8, 8))
    with pytest.raises(ValueError, match="interpret mode"):
        op.grouped_matmul(
            jnp.asarray(p.tokens, jnp.float32),
            jnp.asarray(p.weights, jnp.float32),
            p.plan,
            implementation="tpu",
        )


def test_what_cannot_run_says_why():
    case = Case("grouped_matmul", jnp.dtype("float32"), jnp.dtype("float32"), 6, 2, 3, 4, 5)
    assert tpu.unsupported(case, None) is None
    assert tpu.unsupported(case, "tpu") is None
    deep = dataclasses.replace(case, width=50_000)
    assert "D=50000 above" in (tpu.unsupported(deep, "tpu") or "")
    assert tpu.unsupported(dataclasses.replace(deep, width=50 * 1024), "tpu") is None
    wide = dataclasses.replace(deep, operation="grouped_feed_forward", width=50 * 1024)
    assert "the most that VMEM holds" in (tpu.unsupported(wide, "tpu") or "")
    assert "for TPUs" in (tpu.unsupported(case, "cpu") or "")
    half = jnp.dtype("float16")
    for narrow in (
        dataclasses.replace(case, input_dtype=half),
        dataclasses.replace(case, weight_dtype=half),
    ):
        assert "float32 or bfloat16" in (tpu.unsupported(narrow, "tpu") or "")
        with pytest.raises(ValueError, match=r"'tpu' cannot run: .* must be float32 or bfloat16"):
            op.choose_implementation("tpu", narrow)
