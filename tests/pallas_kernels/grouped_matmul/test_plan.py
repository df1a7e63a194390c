from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.compile_report.compilation import lower_for_h100, lower_for_tpu
from pallas_kernels.grouped_matmul import ROUTING_PLAN, plan, routing_plan
from tests.contracts.sweep import sweep


def check(experts: np.ndarray, num_experts: int) -> None:
    plan = jax.jit(routing_plan, static_argnums=1)(experts, num_experts)
    flat = experts.reshape(-1).astype(np.int64)
    key = np.where((flat >= 0) & (flat < num_experts), flat, num_experts)
    order = np.argsort(key, kind="stable")
    np.testing.assert_array_equal(plan.order, order)
    np.testing.assert_array_equal(np.asarray(plan.order)[plan.inverse], np.arange(flat.size))
    sizes = np.bincount(key, minlength=num_experts + 1)
    np.testing.assert_array_equal(plan.group_sizes, sizes[:num_experts])
    np.testing.assert_array_equal(plan.group_offsets, np.concatenate([[0], np.cumsum(sizes)[:-1]]))
    np.testing.assert_array_equal(plan.expert_of_row, key[order])
    np.testing.assert_array_equal(plan.token_of_row, order // experts.shape[1])
    np.testing.assert_array_equal(plan.slot_is_routed, key < num_experts)
    assert (plan.num_tokens, plan.experts_per_token) == experts.shape
    assert plan.num_experts == num_experts


@pytest.mark.parametrize(
    ("shape", "num_experts"), [((1, 1), 1), ((37, 3), 5), ((64, 2), 256), ((9, 4), 2), ((0, 2), 3)]
)
def test_slots_are_sorted_stably_and_strangers_come_last(shape, num_experts):
    rng = np.random.default_rng(0)
    check(rng.integers(-2, num_experts + 2, size=shape).astype(np.int32), num_experts)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.uint32])
def test_any_integer_type_names_experts(dtype):
    # 300 experts do not fit 8 bits, and the largest uint32 does not fit int32.
    experts = np.array([[1, 100], [np.iinfo(dtype).max, 0]], dtype)
    check(experts, 300)


@pytest.mark.parametrize(
    ("experts", "num_experts", "words"),
    [
        (np.zeros((4, 2), np.int32), 0, "num_experts must be at least 1, got 0"),
        (np.zeros(4, np.int32), 3, r"expert_indices must have shape \[T, K\].*\(4,\)"),
        (np.zeros((4, 0), np.int32), 3, r"K >= 1, got \(4, 0\)"),
        (np.zeros((4, 2), np.float32), 3, "expert_indices must be integers, got float32"),
        (np.zeros((4, 2), np.int32), 2**31, "num_experts must be below 2\\*\\*31, got 2147483648"),
    ],
)
def test_errors_name_the_argument(experts, num_experts, words):
    with pytest.raises(ValueError, match=words):
        routing_plan(jnp.asarray(experts), num_experts)


def test_slots_are_counted_in_int32():
    many = jax.ShapeDtypeStruct((2**30, 2), np.int8)
    with pytest.raises(ValueError, match=r"fewer than 2\*\*31 slots, got \(1073741824, 2\)"):
        jax.eval_shape(lambda x: routing_plan(x, 4), many)


@sweep("num_experts", [5, 2**19 - 1, 2**19, 2**28], [2**19 - 1, 2**19])
def test_both_ways_to_sort_agree(num_experts):
    experts = jax.random.randint(jax.random.key(0), (3001,), 0, num_experts + 1)
    fits = (3000).bit_length() + num_experts.bit_length() <= 31
    slots = jnp.arange(3001, dtype=jnp.int32)
    text = str(jax.make_jaxpr(lambda x: plan._sorted(x, slots, num_experts))(experts))
    assert ("num_keys=2" in text) != fits
    sorted_experts, order = plan._sorted(experts, slots, num_experts)
    expected = np.argsort(np.asarray(experts), kind="stable")
    np.testing.assert_array_equal(order, expected)
    np.testing.assert_array_equal(sorted_experts, np.asarray(experts)[expected])
    assert order.dtype == sorted_experts.dtype == jnp.int32


def test_a_plan_can_be_kept_for_the_backward_pass():
    def sorts(*names: str) -> int:
        policy = jax.checkpoint_policies.save_only_these_names(*names)

        @functools.partial(jax.checkpoint, policy=policy)
        def loss(x):
            indices = jax.lax.top_k(x, 2)[1]
            return (x[routing_plan(indices, 4).order // 2] ** 2).sum()

        return str(jax.make_jaxpr(jax.grad(loss))(jnp.ones((8, 4)))).count("= sort")

    assert sorts() == 2 * sorts(ROUTING_PLAN) > 0


@sweep("size", [1, 7, 1024, 5000], [1, 5000])
def test_both_ways_to_invert_a_permutation_agree(size):
    order = jax.random.permutation(jax.random.key(size), size).astype(jnp.int32)
    expected = np.argsort(np.asarray(order))
    for inverse in (plan._inverse, plan._inverse_by_sorting):
        found = inverse(order)
        assert found.dtype == jnp.int32
        np.testing.assert_array_equal(found, expected)


def test_a_tpu_sorts_and_others_scatter():
    def run(indices):
        return routing_plan(indices, 8).inverse

    indices = jax.ShapeDtypeStruct((64, 2), jnp.int32)
    assert "stablehlo.scatter" not in lower_for_tpu(run, indices)
    assert "stablehlo.scatter" in lower_for_h100(run, indices)
