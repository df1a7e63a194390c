from __future__ import annotations

from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from modbrick.execution import ExecutionConfig, Rematerialisation
from tests.modbrick.layers.tiny import (
    QUICK,
    SPARSE,
    model_config,
    model_of,
    relative_error,
    tokens_of,
)

TOKENS = jnp.asarray(tokens_of(2, 5))
CONFIG = model_config(SPARSE, SPARSE)


def gradient_of(policy, memory="device"):
    execution = ExecutionConfig(rematerialisation=policy, activation_memory=memory)
    graph, parameters = nnx.split(model_of(CONFIG, execution))

    def loss(parameters):
        log_probabilities = jax.nn.log_softmax(nnx.merge(graph, parameters)(TOKENS).logits)
        return (log_probabilities * jnp.cos(jnp.arange(log_probabilities.shape[-1]))).sum()

    return jax.grad(loss), nnx.as_pure(parameters)


@pytest.fixture(scope="module")
def kept():
    """Gradients when everything is kept."""
    gradient, parameters = gradient_of("none")
    return jax.jit(gradient, compiler_options=QUICK)(parameters)


@pytest.mark.parametrize("policy", [p for p in get_args(Rematerialisation) if p != "none"])
def test_gradients_are_equal(policy, kept):
    gradient, parameters = gradient_of(policy)
    actual = jax.jit(gradient, compiler_options=QUICK)(parameters)
    errors = jax.tree.map(relative_error, actual, kept)
    assert max(jax.tree.leaves(errors)) < 1e-5
    assert all(np.linalg.norm(g) > 0 for g in jax.tree.leaves(actual))


def count(policy, operation) -> int:
    gradient, parameters = gradient_of(policy)
    return str(jax.make_jaxpr(gradient)(parameters)).count(f"= {operation}")


def test_what_was_chosen_is_not_sorted_again():
    for operation in ("top_k", "sort"):
        full, kernels, sublayers, none = (
            count(policy, operation) for policy in ("full", "kernels", "sublayers", "none")
        )
        assert full > kernels == sublayers == none > 0


def test_policies_recompute_what_they_do_not_keep():
    def products(policy) -> int:
        return count(policy, "dot_general")

    policies = ("none", "full", "dots", "kernels", "sublayers")
    none, full, dots, kernels, sublayers = map(products, policies)
    assert none < full
    assert dots < full
    assert none < sublayers <= full
    assert none <= kernels < sublayers, "attention runs once"


# Of the sublayers, only what attention gives is needed again: the rest starts from the next input.
@pytest.mark.parametrize(("policy", "moved"), [("full", 1), ("sublayers", 2)])
def test_what_a_layer_keeps_can_wait_in_the_memory_of_the_host(policy, moved):
    def text(memory) -> str:
        gradient, parameters = gradient_of(policy, memory)
        return str(jax.make_jaxpr(gradient)(parameters))

    assert "<host>" not in text("device")
    there = text("host")
    assert there.count("devices=(MemorySpace.Host,)") == moved
    assert there.count("devices=(MemorySpace.Device,)") == moved
    stream = f"f32<host>[{len(CONFIG.layers)},{TOKENS.shape[0]},{TOKENS.shape[1]},{CONFIG.width}]"
    assert stream in there, "of all layers"
