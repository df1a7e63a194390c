"""Reports of what the assembler makes of the kernels for an H100, at the MoLM shape."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import pytest

from pallas_kernels import grouped_matmul as op
from pallas_kernels.compile_report import H100Report, Program, ProgramReference, h100_reports
from pallas_kernels.grouped_matmul.gpu.block_sizes import SHARED_MEMORY

TOKENS, K, EXPERTS, WIDTH, HIDDEN = 16384, 2, 32, 1024, 2048


def _program(function, *shapes: tuple[int, ...]) -> Program:
    # The plan is an argument: XLA asks a device how much memory its sort wants, and none is there.
    indices = jax.ShapeDtypeStruct((TOKENS, K), jnp.int32)
    plan = jax.eval_shape(functools.partial(op.routing_plan, num_experts=EXPERTS), indices)
    arrays = [jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in shapes]
    return Program(function, (plan, *arrays))


def feed_forward() -> Program:
    """Forward and backward, gated."""

    def loss(plan, x, up, gate_weights, down, gates):
        y = op.grouped_feed_forward(
            x,
            up,
            down,
            plan,
            gates,
            gate_weights=gate_weights,
            activation="silu",
            implementation="gpu",
        )
        return jnp.sum(y.astype(jnp.float32))

    bank = (EXPERTS, WIDTH, HIDDEN)
    shapes = ((TOKENS, WIDTH), bank, bank, (EXPERTS, HIDDEN, WIDTH), (TOKENS, K))
    return _program(jax.grad(loss, argnums=(1, 2, 3, 4, 5)), *shapes)


def attention_reduce() -> Program:
    """Forward and backward from slots to gate-weighted sums."""

    def loss(plan, x, weights, gates):
        y = op.grouped_matmul(
            x,
            weights,
            plan,
            gates=gates,
            input_layout="slots",
            output_layout="tokens",
            implementation="gpu",
        )
        return jnp.sum(y.astype(jnp.float32))

    shapes = ((TOKENS, K, WIDTH), (EXPERTS, WIDTH, WIDTH), (TOKENS, K))
    return _program(jax.grad(loss, argnums=(1, 2, 3)), *shapes)


def _report(name: str) -> H100Report:
    [report] = h100_reports([ProgramReference(f"{__file__}:{name}")])
    assert isinstance(report, H100Report), report
    return report


@pytest.mark.verify
@pytest.mark.parametrize(("name", "kernels"), [("feed_forward", 5), ("attention_reduce", 2)])
def test_kernels_neither_spill_nor_serialise(name: str, kernels: int) -> None:
    report = _report(name)
    assert len(report.kernels) == kernels
    for kernel in report.kernels:
        assert kernel.spill_store_bytes == kernel.spill_load_bytes == kernel.stack_bytes == 0
        assert kernel.notes == ()
        assert kernel.registers == 168  # what three warpgroups can have at launch
        assert kernel.shared_bytes <= SHARED_MEMORY
        assert kernel.blocks_per_multiprocessor == 1
        assert kernel.instructions["HGMMA"] >= 4
        assert kernel.instructions["LDGSTS"] >= 8  # rows are read by index
        assert all(product.endswith("f32.bf16.bf16") for product in kernel.wgmma)
