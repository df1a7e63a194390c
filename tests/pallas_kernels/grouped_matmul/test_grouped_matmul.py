"""The public face: validation, and the choice of an implementation."""

from __future__ import annotations

import dataclasses
import itertools

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


def _empty_plan(tokens: int, k: int, experts: int) -> op.RoutingPlan:
    """A plan of slots that are all without an expert where there is none."""
    if experts:
        return op.routing_plan(jnp.zeros((tokens, k), jnp.int32), experts)
    slots = jnp.arange(tokens * k, dtype=jnp.int32)
    return op.RoutingPlan(slots, slots, jnp.zeros(0, jnp.int32), jnp.zeros(1, jnp.int32), k)


# T, K, E, D, F with one or more of them 0.
EMPTY = [(0, 2, 3, 8, 16), (6, 2, 0, 8, 16), (6, 2, 3, 0, 16), (6, 2, 3, 8, 0), (0, 1, 0, 0, 0)]


@pytest.mark.parametrize("sizes", EMPTY, ids=str)
@pytest.mark.parametrize("implementation", op.IMPLEMENTATIONS)
def test_nothing_gives_nothing(implementation: str, sizes: tuple[int, ...]) -> None:
    tokens, k, experts, width, hidden = sizes
    dtype = jnp.bfloat16  # which every implementation takes
    plan = _empty_plan(tokens, k, experts)
    rows = {"tokens": (tokens,), "slots": (tokens, k), "grouped": (tokens * k,)}
    weights = jnp.ones((experts, width, hidden), dtype)
    bias, gates = jnp.ones((experts, hidden), dtype), jnp.ones((tokens, k), dtype)
    for input_layout, output_layout in itertools.product(op.INPUT_LAYOUTS, op.OUTPUT_LAYOUTS):
        inputs = jnp.ones((*rows[input_layout], width), dtype)

        def call(
            inputs,
            weights,
            bias,
            gates,
            input_layout=input_layout,
            output_layout=output_layout,
        ):
            # With a bias there is something to add where the width alone is 0.
            return op.grouped_matmul(
                inputs,
                weights,
                plan,
                input_layout=input_layout,
                output_layout=output_layout,
                bias=bias if width else None,
                gates=gates if output_layout == "tokens" else None,
                preferred_element_type=jnp.float32,
                implementation=implementation,
            )

        outputs, pull = jax.vjp(call, inputs, weights, bias, gates)
        assert outputs.shape == (*rows[output_layout], hidden)
        assert outputs.dtype == jnp.float32
        assert not outputs.any()
        _assert_zeros(pull(jnp.ones_like(outputs)), (inputs, weights, bias, gates))

    inputs, down = jnp.ones((tokens, width), dtype), jnp.swapaxes(weights, 1, 2)
    arguments = inputs, weights, down, gates, weights

    def feed(inputs, up, down, gates, gate_weights):
        return op.grouped_feed_forward(
            inputs, up, down, plan, gates, gate_weights=gate_weights, implementation=implementation
        )

    outputs, pull = jax.vjp(feed, *arguments)
    assert outputs.shape == (tokens, width)
    assert outputs.dtype == dtype
    assert not outputs.any()
    _assert_zeros(pull(jnp.ones_like(outputs)), arguments)


def _assert_zeros(gradients, arguments) -> None:
    for gradient, argument in zip(gradients, arguments, strict=True):
        assert gradient.shape == argument.shape
        assert gradient.dtype == argument.dtype
        assert not gradient.any()


@pytest.mark.parametrize("implementation", ["xla", "reference"])
def test_without_numbers_to_multiply_the_bias_remains(implementation: str) -> None:
    plan = op.routing_plan(jnp.array([[0, 2], [1, -1]]), 3)
    bias, gates = jnp.array([[1.0], [2.0], [4.0]]), jnp.array([[1.0, 0.5], [3.0, 9.0]])

    def call(bias, gates):
        return op.grouped_matmul(
            zeros(2, 0),
            zeros(3, 0, 1),
            plan,
            output_layout="tokens",
            bias=bias,
            gates=gates,
            implementation=implementation,
        )

    outputs, pull = jax.vjp(call, bias, gates)
    np.testing.assert_array_equal(outputs, [[3.0], [6.0]])
    d_bias, d_gates = pull(jnp.ones_like(outputs))
    np.testing.assert_array_equal(d_bias, [[1.0], [3.0], [0.5]])
    np.testing.assert_array_equal(d_gates, [[1.0, 4.0], [2.0, 0.0]])


@pytest.mark.parametrize("dtype", [jnp.float8_e4m3fn, jnp.float8_e5m2, jnp.float4_e2m1fn])
def test_narrow_types_are_refused_by_name(plan, dtype) -> None:
    array = jnp.ones((T, D), dtype)
    words = f"inputs must be float16, bfloat16, float32 or float64, got {array.dtype.name}"
    with pytest.raises(ValueError, match=words):
        op.grouped_matmul(array, zeros(E, D, F), plan)
    with pytest.raises(ValueError, match=words.replace("inputs", "down")):
        op.grouped_feed_forward(
            zeros(T, D), zeros(E, D, F), jnp.ones((E, F, D), dtype), plan, zeros(T, K)
        )
    with pytest.raises(ValueError, match=words.replace("inputs", "preferred_element_type")):
        op.grouped_matmul(zeros(T, D), zeros(E, D, F), plan, preferred_element_type=dtype)


def test_a_plan_without_slots_a_token_is_refused(plan) -> None:
    broken = dataclasses.replace(plan, experts_per_token=0)
    with pytest.raises(ValueError, match=r"plan must have K >= 1 slots a token, got K = 0 and 12"):
        op.grouped_matmul(zeros(T, D), zeros(E, D, F), broken)
