"""Sparse expert dispatch: gather, expert matmul, scatter, in one operation.

Example:
    >>> import jax.numpy as jnp
    >>> plan = routing_plan(jnp.array([[0, 1], [1, 2], [2, 0]]), num_experts=3)
    >>> weights = jnp.stack([i * jnp.eye(2) for i in range(3)])
    >>> gates = jnp.full((3, 2), 0.5)
    >>> grouped_matmul(jnp.ones((3, 2)), weights, plan, gates=gates, output_layout="tokens")
    Array([[0.5, 0.5],
           [1.5, 1.5],
           [1. , 1. ]], dtype=float32)
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import jax
import jax.numpy as jnp
from jax import Array

from pallas_kernels.grouped_matmul.activations import find_activation
from pallas_kernels.grouped_matmul.implementations import (
    IMPLEMENTATIONS,
    REGISTRY,
    Case,
    available_implementations,
    case_of,
    choose_implementation,
)
from pallas_kernels.grouped_matmul.plan import ROUTING_PLAN, RoutingPlan, routing_plan
from pallas_kernels.implementations import DEFAULT

__all__ = [
    "IMPLEMENTATIONS",
    "ROUTING_PLAN",
    "Case",
    "RoutingPlan",
    "available_implementations",
    "choose_implementation",
    "grouped_feed_forward",
    "grouped_matmul",
    "routing_plan",
]

INPUT_LAYOUTS = ("tokens", "slots", "grouped")
OUTPUT_LAYOUTS = ("grouped", "slots", "tokens")


def _check_layout(name: str, layout: str, known: tuple[str, ...]) -> None:
    if layout not in known:
        raise ValueError(f"{name}={layout!r} is unknown; known are {', '.join(map(repr, known))}")


def _check_shape(name: str, array: Array, axes: str, shape: tuple[int, ...]) -> None:
    if array.shape != shape:
        raise ValueError(f"{name} must have shape {axes} = {shape}, got {array.shape}")


def _check_floating(**arrays: Array | jax.ShapeDtypeStruct | None) -> None:
    for name, array in arrays.items():
        if array is None:
            continue
        if not jnp.issubdtype(array.dtype, jnp.floating):
            raise ValueError(f"{name} must be floating point, got {array.dtype}")
        if array.dtype.itemsize < 2:
            raise ValueError(
                f"{name} must be float16, bfloat16, float32 or float64, got {array.dtype}: "
                "convert what is narrower"
            )


def _check_plan(plan: RoutingPlan) -> None:
    k, slots = plan.experts_per_token, plan.num_slots
    if k < 1 or slots % k:
        raise ValueError(f"plan must have K >= 1 slots a token, got K = {k} and {slots} slots")


def _resolve_precision(precision: jax.lax.PrecisionLike, inputs: Array) -> jax.lax.Precision:
    if precision is None:
        # On accelerators the default for float32 is bfloat16 or TF32 products.
        wide = jnp.finfo(inputs.dtype).bits >= 32
        return jax.lax.Precision.HIGHEST if wide else jax.lax.Precision.DEFAULT
    return jax.lax.Precision(precision)


def _load(implementation: str | None, case: Case | None) -> ModuleType:
    """The module that will run; without a case it has nothing to do, and the name alone counts."""
    return REGISTRY.load_implementation(choose_implementation(implementation, case))


def grouped_matmul(
    inputs: Array,
    weights: Array,
    plan: RoutingPlan,
    *,
    input_layout: str = "tokens",
    output_layout: str = "grouped",
    gates: Array | None = None,
    bias: Array | None = None,
    precision: jax.lax.PrecisionLike = None,
    preferred_element_type: jax.typing.DTypeLike | None = None,
    implementation: str | None = None,
) -> Array:
    """Multiplies each slot's row by the weights of the slot's expert.

    The four combinations of ungrouped and grouped ends are those of ScatterMoE
    (arXiv 2403.08245, section 3). Slots without an expert contribute zero and pass no gradient.
    Products are accumulated in float32 (float64 for float64 inputs), and the same arguments give
    the same bits. T, E, D and F may be 0.

    Args:
        inputs: floating, of 16 bits at least: [T, D] for `input_layout="tokens"` (each slot reads
            its token's row), [T, K, D] for "slots", [T*K, D] for "grouped" (rows in the order of
            `plan.order`).
        weights: floating [E, D, F].
        plan: the routing plan, for the same T, K and E.
        input_layout: see `inputs`.
        output_layout: "grouped" gives [T*K, F], "slots" [T, K, F], "tokens" the sum over the K
            slots of a token, weighted by `gates`, [T, F].
        gates: floating [T, K]; needed for `output_layout="tokens"`, refused otherwise.
        bias: floating [E, F], added to each row before the gates.
        precision: of the products; by default HIGHEST for float32 inputs and DEFAULT for narrower
            ones.
        preferred_element_type: dtype of the outputs; that of `inputs` by default.
        implementation: "tpu" and "gpu" (Pallas kernels), "xla", "reference", or None for the best
            that can run this case on the platform in force (`choose_implementation` returns which).

    Returns:
        The outputs, differentiable once (reverse mode) in inputs, weights, gates and bias.

    Raises:
        ValueError: arguments do not fit each other (the message names the argument and the shapes),
            or the implementation cannot run.
    """
    _check_layout("input_layout", input_layout, INPUT_LAYOUTS)
    _check_layout("output_layout", output_layout, OUTPUT_LAYOUTS)
    output_dtype = jnp.dtype(preferred_element_type or inputs.dtype)
    preferred = jax.ShapeDtypeStruct((), output_dtype)
    _check_floating(
        inputs=inputs, weights=weights, gates=gates, bias=bias, preferred_element_type=preferred
    )
    _check_plan(plan)
    tokens, k, experts = plan.num_tokens, plan.experts_per_token, plan.num_experts
    if weights.ndim != 3 or weights.shape[0] != experts:
        raise ValueError(f"weights must have shape [E={experts}, D, F], got {weights.shape}")
    width, out_width = weights.shape[1:]
    axes, shape = {
        "tokens": ("[T, D]", (tokens, width)),
        "slots": ("[T, K, D]", (tokens, k, width)),
        "grouped": ("[T*K, D]", (tokens * k, width)),
    }[input_layout]
    _check_shape("inputs", inputs, axes, shape)
    if (gates is None) == (output_layout == "tokens"):
        raise ValueError(
            "gates are needed for output_layout='tokens' and for no other, got "
            f"output_layout={output_layout!r} with gates "
            f"{'None' if gates is None else gates.shape}"
        )
    if gates is not None:
        _check_shape("gates", gates, "[T, K]", (tokens, k))
    if bias is not None:
        _check_shape("bias", bias, "[E, F]", (experts, out_width))
    resolved = _resolve_precision(precision, inputs)
    case = case_of(
        "grouped_matmul",
        inputs,
        weights,
        (tokens, k, experts),
        input_layout=input_layout,
        output_layout=output_layout,
        biased=bias is not None,
        precision=resolved,
    )
    nothing = 0 in (tokens, experts, out_width)
    module = _load(implementation, None if nothing or not width else case)
    if nothing or (not width and bias is None):
        rows = {"grouped": (tokens * k,), "slots": (tokens, k), "tokens": (tokens,)}[output_layout]
        return jnp.zeros((*rows, out_width), output_dtype)
    if not width:  # There is only the bias, and nothing for a kernel to multiply.
        module = REGISTRY.load_implementation(DEFAULT)
        inputs = jnp.zeros((*inputs.shape[:-1], 1), inputs.dtype)
        weights = jnp.zeros((experts, 1, out_width), weights.dtype)
    outputs: Array = module.grouped_matmul(
        inputs,
        weights,
        plan,
        gates,
        bias,
        input_layout=input_layout,
        output_layout=output_layout,
        precision=resolved,
        output_dtype=output_dtype,
    )
    return outputs


def grouped_feed_forward(
    inputs: Array,
    up: Array,
    down: Array,
    plan: RoutingPlan,
    gates: Array,
    *,
    gate_weights: Array | None = None,
    activation: str | Callable[[Array], Array] = "gelu_tanh",
    precision: jax.lax.PrecisionLike = None,
    implementation: str | None = None,
) -> Array:
    """The feed-forward experts: the gate-weighted sum of `activation(x @ up) @ down` over slots.

    With `gate_weights` the hidden layer is `activation(x @ gate_weights) * (x @ up)`. Both products
    and the activation run tile by tile, so that a tile's hidden layer stays in cache. Numerics,
    determinism and slots without an expert are as in `grouped_matmul`.

    Args:
        inputs: floating [T, D].
        up: floating [E, D, F].
        down: floating [E, F, D].
        plan: the routing plan, for the same T and E.
        gates: floating [T, K].
        gate_weights: floating [E, D, F], or None for an ungated hidden layer.
        activation: "gelu", "gelu_tanh", "relu", "silu", or an elementwise function. A function must
            be hashable, and the same object at each call, or jit compiles again.
        precision: as in `grouped_matmul`.
        implementation: as in `grouped_matmul`.

    Returns:
        [T, D] in the dtype of `inputs`, differentiable once (reverse mode) in all float arguments.

    Raises:
        ValueError: as in `grouped_matmul`; or the activation's name is unknown.
    """
    _check_floating(inputs=inputs, up=up, down=down, gates=gates, gate_weights=gate_weights)
    _check_plan(plan)
    function = find_activation(activation)
    tokens, experts = plan.num_tokens, plan.num_experts
    if up.ndim != 3 or up.shape[0] != experts:
        raise ValueError(f"up must have shape [E={experts}, D, F], got {up.shape}")
    width, hidden = up.shape[1:]
    _check_shape("inputs", inputs, "[T, D]", (tokens, width))
    _check_shape("down", down, "[E, F, D]", (experts, hidden, width))
    _check_shape("gates", gates, "[T, K]", (tokens, plan.experts_per_token))
    if gate_weights is not None:
        _check_shape("gate_weights", gate_weights, "[E, D, F]", up.shape)
    resolved = _resolve_precision(precision, inputs)
    case = case_of(
        "grouped_feed_forward",
        inputs,
        up,
        (tokens, plan.experts_per_token, experts),
        gated=gate_weights is not None,
        precision=resolved,
    )
    nothing = 0 in (tokens, experts, width, hidden)
    module = _load(implementation, None if nothing else case)
    if nothing:
        return jnp.zeros((tokens, width), inputs.dtype)
    outputs: Array = module.grouped_feed_forward(
        inputs, up, down, plan, gates, gate_weights, activation=function, precision=resolved
    )
    return outputs
