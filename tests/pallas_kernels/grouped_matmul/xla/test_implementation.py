from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels import grouped_matmul as op
from pallas_kernels.grouped_matmul.hidden_layer import PRE_ACTIVATION_NAME
from pallas_kernels.grouped_matmul.xla.block_sizes import tile_heights
from tests.contracts.grouped_matmul import GroupedMatmulContract

T, K, E, D, F = 160, 2, 16, 24, 40


class TestXla(GroupedMatmulContract):
    implementation = "xla"


def loss(x, up, down, gates, experts):
    plan = op.routing_plan(experts, E)
    # Linear in the outputs, so that the backward pass has no use for them.
    return jnp.sum(op.grouped_feed_forward(x, up, down, plan, gates, implementation="xla"))


def arguments():
    rng = np.random.default_rng(0)
    shapes = ((T, D), (E, D, F), (E, F, D), (T, K))
    experts = rng.integers(0, E, (T, K)).astype(np.int32)
    return [*(rng.normal(size=shape).astype(np.float32) for shape in shapes), experts]


def test_no_product_spans_all_experts():
    """Every product of the compiled gradient is one tile of one expert."""
    gradient = jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3)))
    text = gradient.lower(*arguments()).compile().as_text()
    assert text is not None
    shapes = re.findall(r"= f32\[([\d,]*)\]\S* dot\(", text)
    limit = tile_heights(T * K, E)[-1]
    assert limit < T * K / 4, "the test would not tell a tile from all rows"
    assert len(shapes) >= 6
    for shape in shapes:
        dims = [int(d) for d in shape.split(",") if d]
        assert len(dims) <= 2, shape
        assert dims[0] <= max(limit, D, F), shape
    # Row buffers and sums of gradients are updated in place.
    copies = re.findall(r"= f32\[(\d+),(\d+),(\d+)\]\S* copy\(", text)
    assert not [c for c in copies if int(c[0]) == E]


def test_the_backward_pass_keeps_the_pre_activations_and_no_more():
    def kept(function, *floats):
        sizes: list[int] = []

        def trace(*floats):
            _, pull = jax.vjp(function, *floats)
            mine = {id(x) for x in floats}
            leaves = [x for x in jax.tree.leaves(pull) if hasattr(x, "dtype") and id(x) not in mine]
            sizes.extend(x.size for x in leaves if jnp.issubdtype(x.dtype, jnp.floating))

        jax.eval_shape(trace, *floats)
        return sum(sizes)

    x, up, down, gates, experts = arguments()
    x, up, down, gates = (jnp.asarray(a) for a in (x, up, down, gates))
    plan = op.routing_plan(jnp.asarray(experts), E)
    padded = T * K + tile_heights(T * K, E)[-1]

    def matmul(x, up, gates):
        return op.grouped_matmul(x, up, plan, output_layout="tokens", gates=gates)

    def feed_forward(x, up, down, gates):
        return op.grouped_feed_forward(x, up, down, plan, gates)

    assert kept(matmul, x, up, gates) == 0
    assert kept(feed_forward, x, up, down, gates) == padded * F


def count_equations(jaxpr, name: str) -> int:
    """Number of times that a primitive occurs, in nested computations too."""
    total = 0
    for equation in jaxpr.eqns:
        total += equation.primitive.name == name
        for parameter in jax.tree.leaves(
            equation.params, is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")
        ):
            inner = getattr(parameter, "jaxpr", parameter)
            if hasattr(inner, "eqns"):
                total += count_equations(inner, name)
    return total


def test_a_rematerialisation_policy_can_keep_the_pre_activations():
    """Kept by name, the forward products are not computed a second time."""
    policies = jax.checkpoint_policies

    def products(policy):
        remat = jax.checkpoint(loss, policy=policy)
        jaxpr = jax.make_jaxpr(jax.value_and_grad(remat, argnums=(0, 1, 2, 3)))(*arguments())
        return count_equations(jaxpr.jaxpr, "ragged_dot_general")

    nothing = products(policies.nothing_saveable)
    named = products(policies.save_only_these_names(PRE_ACTIVATION_NAME))
    assert (nothing, named) == (8, 6)  # 2 forward, 4 backward, and 2 again
