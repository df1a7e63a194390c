"""The public face: validation, and the choice of an implementation."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import grouped_matmul as op
from pallas_kernels.grouped_matmul.activations import ACTIVATIONS

T, K, E, D, F = 6, 2, 3, 4, 5


def zeros(*shape: int) -> jax.Array:
    return jnp.zeros(shape, jnp.float32)


@pytest.fixture(scope="module")
def plan() -> op.RoutingPlan:
    return op.routing_plan(jnp.zeros((T, K), jnp.int32), E)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"inputs": (T, D + 1)}, r"inputs must have shape \[T, D\] = \(6, 4\), got \(6, 5\)"),
        ({"inputs": (T, D), "input_layout": "slots"}, r"inputs must have shape \[T, K, D\]"),
        ({"inputs": (T, D), "input_layout": "grouped"}, r"\[T\*K, D\] = \(12, 4\), got \(6, 4\)"),
        ({"weights": (E + 1, D, F)}, r"weights must have shape \[E=3, D, F\], got \(4, 4, 5\)"),
        ({"weights": (D, F)}, r"weights must have shape \[E=3, D, F\], got \(4, 5\)"),
        ({"bias": (F,)}, r"bias must have shape \[E, F\] = \(3, 5\), got \(5,\)"),
        ({"output_layout": "tokens"}, "gates are needed for output_layout='tokens'"),
        ({"gates": (T, K)}, r"output_layout='grouped' with gates \(6, 2\)"),
        ({"gates": (T,), "output_layout": "tokens"}, r"gates must have shape \[T, K\] = \(6, 2\)"),
        ({"input_layout": "rows"}, "input_layout='rows' is unknown; known are 'tokens', 'slots'"),
        ({"output_layout": "rows"}, "output_layout='rows' is unknown"),
        ({"implementation": "cuda"}, "implementation='cuda' is unknown; known are 'reference'"),
    ],
)
def test_matmul_errors_name_the_argument_and_the_shapes(plan, change, words):
    call = {"inputs": (T, D), "weights": (E, D, F)} | change
    call = {k: zeros(*v) if isinstance(v, tuple) else v for k, v in call.items()}
    inputs, weights = call.pop("inputs"), call.pop("weights")
    with pytest.raises(ValueError, match=words):
        op.grouped_matmul(inputs, weights, plan, **call)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"inputs": (T + 1, D)}, r"inputs must have shape \[T, D\] = \(6, 4\), got \(7, 4\)"),
        ({"up": (E - 1, D, F)}, r"up must have shape \[E=3, D, F\], got \(2, 4, 5\)"),
        ({"down": (E, D, F)}, r"down must have shape \[E, F, D\] = \(3, 5, 4\), got \(3, 4, 5\)"),
        ({"gates": (T, K + 1)}, r"gates must have shape \[T, K\] = \(6, 2\), got \(6, 3\)"),
        ({"gate_weights": (E, F, D)}, r"gate_weights must have shape \[E, D, F\]"),
        ({"activation": "swish"}, "activation='swish' is unknown; known are 'gelu'"),
    ],
)
def test_feed_forward_errors_name_the_argument_and_the_shapes(plan, change, words):
    call = {"inputs": (T, D), "up": (E, D, F), "down": (E, F, D), "gates": (T, K)} | change
    call = {k: zeros(*v) if isinstance(v, tuple) else v for k, v in call.items()}
    inputs, up, down, gates = (call.pop(name) for name in ("inputs", "up", "down", "gates"))
    with pytest.raises(ValueError, match=words):
        op.grouped_feed_forward(inputs, up, down, plan, gates, **call)


def test_integer_operands_are_refused(plan):
    with pytest.raises(ValueError, match="inputs must be floating point, got int32"):
        op.grouped_matmul(jnp.zeros((T, D), jnp.int32), zeros(E, D, F), plan)


def test_activations_by_name():
    x = np.linspace(-4, 4, 41)
    erf = np.array([float(jax.lax.erf(v)) for v in (x / np.sqrt(2)).astype(np.float32)])
    expected = {
        "gelu": 0.5 * x * (1 + erf),
        "gelu_tanh": 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
        "relu": np.maximum(x, 0),
        "silu": x / (1 + np.exp(-x)),
    }
    assert expected.keys() == ACTIVATIONS.keys()
    for name, values in expected.items():
        measured = ACTIVATIONS[name](jnp.asarray(x, jnp.float32))
        np.testing.assert_allclose(measured, values, atol=2e-6, err_msg=name)
