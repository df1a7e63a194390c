from __future__ import annotations

import functools
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from modbrick.execution import ExecutionConfig, Rematerialisation
from tests.modbrick.layers.tiny import (
    ATTENTIONS,
    DENSE_FEED_FORWARD,
    QUICK,
    SPARSE,
    WIDTH,
    LayerConfig,
    model_config,
    model_of,
    relative_error,
    tokens_of,
)

TOKENS = jnp.asarray(tokens_of(2, 5))
# Everything that a policy names, in one sublayer.
ROUTED_ATTENTION = LayerConfig(ATTENTIONS["stickbreaking experts"], DENSE_FEED_FORWARD)


def gradient_of(policy, memory="device", layer=ROUTED_ATTENTION):
    execution = ExecutionConfig(rematerialisation=policy, activation_memory=memory)
    graph, parameters = nnx.split(model_of(model_config(layer, layer), execution))

    def loss(parameters):
        log_probabilities = jax.nn.log_softmax(nnx.merge(graph, parameters)(TOKENS).logits)
        return (log_probabilities * jnp.cos(jnp.arange(log_probabilities.shape[-1]))).sum()

    return jax.grad(loss), nnx.as_pure(parameters)


@functools.cache
def program(policy, memory="device") -> str:
    gradient, parameters = gradient_of(policy, memory)
    return str(jax.make_jaxpr(gradient)(parameters))


@functools.cache
def gradients(policy, layer):
    gradient, parameters = gradient_of(policy, layer=layer)
    return jax.jit(gradient, compiler_options=QUICK)(parameters)


@pytest.mark.parametrize(
    ("policy", "layer"),
    [
        ("kernels", ROUTED_ATTENTION),  # of all policies the one with most names
        *(
            pytest.param(policy, SPARSE, marks=pytest.mark.verify)
            for policy in get_args(Rematerialisation)
            if policy != "none"
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_gradients_are_equal(policy, layer):
    actual = gradients(policy, layer)
    errors = jax.tree.map(relative_error, actual, gradients("none", layer))
    assert max(jax.tree.leaves(errors)) < 1e-5
    assert all(np.linalg.norm(g) > 0 for g in jax.tree.leaves(actual))


def count(policy, operation) -> int:
    return program(policy).count(f"= {operation}")


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
    assert "<host>" not in program(policy)
    there = program(policy, "host")
    assert there.count("devices=(MemorySpace.Host,)") == moved
    assert there.count("devices=(MemorySpace.Device,)") == moved
    stream = f"f32<host>[2,{TOKENS.shape[0]},{TOKENS.shape[1]},{WIDTH}]"
    assert stream in there, "of both layers"
