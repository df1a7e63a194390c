from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.grouped_matmul import routing_plan
from pallas_kernels.grouped_matmul.xla.block_sizes import tile_heights
from pallas_kernels.grouped_matmul.xla.tile_loop import loop_over_experts


@functools.partial(jax.jit, static_argnums=1)
def count(experts, num_experts):
    """For each expert the rows computed and those that count; and who wrote each row."""
    plan = routing_plan(experts, num_experts)
    heights = tile_heights(plan.num_slots, num_experts)
    names = jnp.arange(num_experts, dtype=jnp.int32)

    def body(tile, mine):
        own = jnp.sum(tile.own())
        return (jnp.broadcast_to(mine[0], (tile.height, 1)),), (jnp.int32(tile.height), own)

    buffer = jnp.full((plan.num_slots + heights[-1], 1), -1, jnp.int32)
    zeros = jnp.zeros(num_experts, jnp.int32)
    (writers,), (computed, own) = loop_over_experts(
        plan, heights, (names,), (buffer,), (zeros, zeros), body
    )
    return plan, writers[: plan.num_slots, 0], computed, own


@pytest.mark.parametrize(("skew", "most"), [(0.0, 1.08), (1.0, 1.16), (3.0, 1.25)])
def test_only_useful_rows_are_computed(skew, most):
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(2048, 16)) + skew * np.linspace(0, 1, 16)
    experts = np.argsort(-scores, axis=1)[:, :2].astype(np.int32)
    plan, writers, computed, own = count(experts, 16)
    np.testing.assert_array_equal(own, plan.group_sizes)
    np.testing.assert_array_equal(writers, plan.expert_of_row)
    assert 1.0 <= np.sum(computed) / experts.size <= most


def test_experts_without_rows_cost_nothing_and_long_ones_take_several_tiles():
    experts = np.where(np.arange(600) < 590, 3, 1)[:, None].astype(np.int32)
    plan, writers, computed, own = count(experts, 6)
    np.testing.assert_array_equal(own, plan.group_sizes)
    np.testing.assert_array_equal(writers, plan.expert_of_row)
    assert np.flatnonzero(computed).tolist() == [1, 3]
    assert tile_heights(600, 6)[-1] < 590
    assert np.sum(computed) <= 1.1 * 600


@pytest.mark.parametrize("slots", [1, 7, 100, 4096, 10**6])
@pytest.mark.parametrize("experts", [1, 8, 256])
def test_heights_ascend_and_hold_any_rest(slots, experts):
    heights = tile_heights(slots, experts)
    assert list(heights) == sorted(set(heights))
    assert heights[0] >= 1
    assert heights[-1] <= max(2 * 512, 8)
    # A tile is never more than a multiple taller than all rows together.
    assert heights[-1] < slots + 8
