"""The kernels for Hopper GPUs: numerics and races in interpret mode, and what they are lowered to.

Interpreting a kernel takes seconds, so the suite runs part of the contract here, on the kernels'
own dtype and on float32 in parts; the whole contract runs in `make verify`.
"""

from __future__ import annotations

import dataclasses
import re

import jax
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import grouped_matmul as op
from pallas_kernels.compile_report import lower_for_h100
from pallas_kernels.grouped_matmul.gpu import implementation as gpu
from pallas_kernels.grouped_matmul.gpu import products as gpu_products
from pallas_kernels.grouped_matmul.implementations import Case
from tests.contracts.grouped_matmul import (
    GroupedMatmulContract,
    assert_close,
    feed_forward_oracle,
    problem,
)
from tests.contracts.sweep import sweep

CASE = Case("grouped_matmul", jnp.dtype("bfloat16"), jnp.dtype("bfloat16"), 6, 2, 3, 4, 5)


@pytest.fixture
def _interpret():
    with plgpu.force_gpu_interpret_mode(plgpu.InterpretGPUParams(detect_races=True)):
        yield


@pytest.mark.verify
@pytest.mark.usefixtures("_interpret")
class TestGpu(GroupedMatmulContract):
    implementation = "gpu"

    # The interpreter's callbacks have an effect that `jax.checkpoint` refuses: lowered, below.
    @pytest.mark.parametrize("wrap", [lambda layer: layer], ids=[""])
    def test_it_composes_with_scan_over_layers(self, wrap):
        super().test_it_composes_with_scan_over_layers(wrap)


@pytest.mark.usefixtures("_interpret")
class TestPartOfTheContract:
    """On widths that leave parts of tiles, with slots that have no expert."""

    contract = TestGpu()

    def test_gated_feed_forward_and_its_gradients(self):
        p = problem((13, 2, 3, 20, 70), seed=2)
        results = self.contract.feed_forward_results(p, "silu", True, jnp.bfloat16)
        for name, expected in feed_forward_oracle(p, "silu", True).items():
            assert_close(name, results[name], expected, 1e-2)

    def test_gate_weighted_sums_and_their_gradients(self):
        p = problem((9, 2, 3, 20, 70), seed=1)
        results = self.contract.matmul_results(p, "slots", "tokens", jnp.bfloat16)
        for name, expected in self.contract.matmul_expected(p, "slots", "tokens").items():
            assert_close(name, results[name], expected, 1e-2)

    @sweep("output_layout", ["slots", "grouped"], ["slots"])
    def test_float32_is_as_accurate_as_float32(self, output_layout):
        p = problem((9, 2, 3, 20, 70), seed=3)
        plan = p.plan
        tokens, weights, bias = (x.astype(np.float32) for x in (p.tokens, p.weights, p.bias))
        outputs = self.contract.grouped_matmul(
            tokens, weights, plan, bias=bias, output_layout=output_layout
        )
        expected = self.contract.matmul_expected(p, "tokens", "slots")["outputs"]
        if output_layout == "grouped":
            expected = expected.reshape(plan.num_slots, -1)[np.asarray(plan.order)]
        assert_close("outputs", outputs, expected, 1e-6)
        without = p.experts.reshape(-1)[np.asarray(plan.order)[int(plan.group_offsets[-1]) :]]
        assert without.size > 0  # these rows are zeros


def _lowered(dtype: jnp.dtype, **settings) -> str:
    """The text of a call and its gradients, lowered for an H100."""
    tokens, k, experts, width, hidden = 96, 2, 4, 128, 192

    def run(inputs, weights, gates, indices):
        plan = op.routing_plan(indices, experts)

        def call(inputs, weights, gates):
            y = op.grouped_matmul(
                inputs,
                weights,
                plan,
                gates=gates,
                output_layout="tokens",
                implementation="gpu",
                **settings,
            )
            return jnp.sum(y.astype(jnp.float32))

        return jax.grad(call, argnums=(0, 1, 2))(inputs, weights, gates)

    return lower_for_h100(
        run,
        jax.ShapeDtypeStruct((tokens, width), dtype),
        jax.ShapeDtypeStruct((experts, width, hidden), dtype),
        jax.ShapeDtypeStruct((tokens, k), jnp.float32),
        jax.ShapeDtypeStruct((tokens, k), jnp.int32),
    )


def _products(text: str) -> list[str]:
    """The operand types of the matrix instructions in a lowered text."""
    return re.findall(r"wgmma\.mma_async\.sync\.aligned\.m\d+n\d+k\d+\.(f32\.\w+\.\w+)", text)


def test_layers_that_are_computed_again_lower():
    contract = TestGpu()
    layer, chosen, arguments = contract.layers()
    gradients = contract.gradients_of_a_scan(jax.checkpoint(layer), chosen)
    shapes = (jax.ShapeDtypeStruct(a.shape, jnp.bfloat16) for a in arguments)
    assert _products(lower_for_h100(gradients, *shapes))


@sweep(
    ("dtype", "precision", "operands"),
    [
        ("bfloat16", None, "bf16.bf16"),
        ("float32", None, "bf16.bf16"),
        ("float32", "high", "bf16.bf16"),
        ("float16", None, "f16.f16"),
    ],
    [("bfloat16", None, "bf16.bf16"), ("float32", None, "bf16.bf16")],
)
def test_wgmma_multiplies_bfloat16_and_never_tf32(dtype, precision, operands):
    """Interpret mode multiplies float32 exactly, where wgmma would take eleven bits of it."""
    products = _products(_lowered(jnp.dtype(dtype), precision=precision))
    assert set(products) == {f"f32.{operands}"}


@pytest.mark.parametrize(("precision", "products"), [("highest", 6), ("high", 3), ("default", 1)])
def test_float32_is_multiplied_in_as_many_products_as_its_precision_says(precision, products):
    operands = gpu_products.Operands(jnp.dtype(jnp.bfloat16), jax.lax.Precision(precision))
    rng = np.random.default_rng(0)
    a, b = (jnp.asarray(rng.normal(size=(64, 64)), jnp.float32) for _ in range(2))
    parts = operands.prepare(a), operands.prepare(b)
    pairs = operands.pairs(*parts)
    assert len(pairs) == products
    wide = [[np.asarray(part, np.float64) for part in of] for of in parts]
    total = sum(wide[0][i] @ wide[1][j] for i, j in pairs)
    exact = np.asarray(a, np.float64) @ np.asarray(b, np.float64)
    error = np.linalg.norm(total - exact) / np.linalg.norm(exact)
    assert error < {6: 2**-24, 3: 2**-15, 1: 2**-7}[products]


def test_parts_of_bfloat16_are_the_operand_itself():
    operands = gpu_products.Operands(jnp.dtype(jnp.bfloat16), jax.lax.Precision.HIGHEST)
    (part,) = operands.prepare(jnp.ones((3, 128), jnp.bfloat16))
    assert part.shape == (3, 128)
    (padded,) = operands.prepare(jnp.ones((2, 20, 33), jnp.bfloat16))
    assert padded.shape == (2, 64, 64)
    assert float(jnp.sum(padded.astype(jnp.float32))) == 2 * 20 * 33


def test_rows_are_read_by_index_without_a_gathered_copy():
    """No array of T*K rows of the inputs appears among the operations around the kernels."""
    text = _lowered(jnp.dtype(jnp.bfloat16))
    rows, width = 96 * 2, 128
    gathers = re.findall(r"stablehlo\.gather.*-> (tensor<[^>]*>)", text)
    assert f"tensor<{rows}x{width}xbf16>" not in gathers
    assert f"tensor<{rows}x192xbf16>" not in gathers


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, None),
        ({"input_dtype": jnp.dtype("float16"), "weight_dtype": jnp.dtype("float32")}, None),
        ({"input_dtype": jnp.dtype("float64")}, "inputs are float64"),
        ({"weight_dtype": jnp.dtype("float8_e4m3fn")}, "weights are float8_e4m3fn"),
        ({"tokens": 0}, "T=0"),
    ],
)
def test_a_case_that_cannot_run_says_why(changes, reason):
    said = gpu.unsupported(dataclasses.replace(CASE, **changes), None)
    if reason is None:
        assert said is None
    else:
        assert reason in (said or "")


def test_it_runs_on_hopper_only():
    assert "'cpu'" in (gpu.unsupported(None, "cpu") or "")

    def on(kind: str) -> str | None:
        device = jax.sharding.AbstractDevice(kind, 132, platform="gpu")
        with jax.sharding.use_abstract_mesh(
            jax.sharding.AbstractMesh((), (), abstract_device=device)
        ):
            chosen = op.choose_implementation(None, CASE)
            assert chosen == ("gpu" if gpu.unsupported(CASE, "gpu") is None else "xla")
            return gpu.unsupported(CASE, "gpu")

    assert on("NVIDIA H100 80GB HBM3") is None
    assert on("NVIDIA H200") is None
    assert "NVIDIA A100" in (on("NVIDIA A100-SXM4-80GB") or "")
