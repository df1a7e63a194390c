"""The path of the platforms that have ragged products, run on the CPU."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from pallas_kernels import grouped_matmul as op
from pallas_kernels.grouped_matmul.xla import implementation as xla
from pallas_kernels.grouped_matmul.xla import ragged
from tests.contracts.grouped_matmul import GroupedMatmulContract


class TestRagged(GroupedMatmulContract):
    implementation = "xla"

    @pytest.fixture(autouse=True)
    def _take_the_other_path(self, monkeypatch):
        monkeypatch.setattr(xla, "loops", ragged)


@pytest.mark.parametrize(("platform", "is_ragged"), [("cpu", False), ("tpu", True), ("cuda", True)])
def test_the_platform_of_the_lowering_decides(platform, is_ragged):
    def loss(x, up, down, gates, experts):
        plan = op.routing_plan(experts, up.shape[0])
        return jnp.sum(op.grouped_feed_forward(x, up, down, plan, gates))

    shapes = ((64, 16), (4, 16, 24), (4, 24, 16), (64, 2))
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    arguments.append(jax.ShapeDtypeStruct((64, 2), jnp.int32))
    gradient = jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3)))
    text = jax.export.export(gradient, platforms=[platform])(*arguments).mlir_module()
    assert ("ragged_dot" in text) == is_ragged
    assert ("optimization_barrier" in text) != is_ragged  # only the tile loop has them
