"""The four computations of the op on `jax.lax.ragged_dot`, for platforms that have kernels for it.

Rows are brought into grouped order by one gather. They are padded like the row buffers of `loops`,
so that both leave the same arrays to the backward pass; rows without an expert are zeroed before
each product, since a product over rows must not meet what they hold.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from pallas_kernels.grouped_matmul.hidden_layer import Activation, hidden_layer
from pallas_kernels.grouped_matmul.plan import RoutingPlan
from pallas_kernels.grouped_matmul.rows import flatten_rows, row_index, take_rows, ungroup
from pallas_kernels.grouped_matmul.xla.loops import compute_dtype, padded_rows

Arrays = tuple[Array, ...]


def _routed(plan: RoutingPlan) -> Array:
    """Boolean [N, 1]; which of the padded grouped rows have an expert."""
    return (jnp.arange(padded_rows(plan), dtype=jnp.int32) < plan.group_offsets[-1])[:, None]


def _group(x: Array, plan: RoutingPlan, layout: str) -> Array:
    """[N, D]; grouped, padded, and zero where a row has no expert."""
    index = row_index(plan, layout)
    index = jnp.pad(index, (0, padded_rows(plan) - plan.num_slots))
    return jnp.where(_routed(plan), take_rows(flatten_rows(x, layout), index), 0)


def _ragged_dot(
    a: Array,
    b: Array,
    plan: RoutingPlan,
    precision: jax.lax.Precision,
    dtype: DTypeLike,
    *,
    contract: tuple[int, int],
    group_dimension: int | None,
) -> Array:
    dimensions = jax.lax.RaggedDotDimensionNumbers(
        dot_dimension_numbers=(((contract[0],), (contract[1],)), ((), ())),
        lhs_ragged_dimensions=[0],
        rhs_group_dimensions=[] if group_dimension is None else [group_dimension],
    )
    # Both operands in one dtype: kernels for mixed ones are rare.
    common = jnp.promote_types(a.dtype, b.dtype)
    return jax.lax.ragged_dot_general(
        a.astype(common),
        b.astype(common),
        plan.group_sizes,
        dimensions,
        precision=precision,
        preferred_element_type=dtype,
    )


def _project(
    rows: Array, bank: Array, plan: RoutingPlan, precision: jax.lax.Precision, axis: int = 1
) -> Array:
    """Each row by its expert's matrix, contracting `axis` of the bank [E, D, F]."""
    dtype = compute_dtype(rows)
    products = _ragged_dot(
        rows, bank, plan, precision, dtype, contract=(1, axis), group_dimension=0
    )
    return jnp.where(_routed(plan), products, 0)


def _sum_products(a: Array, b: Array, plan: RoutingPlan, precision: jax.lax.Precision) -> Array:
    """[E, D, F]; a.T @ b over each expert's rows."""
    dtype = compute_dtype(a)
    return _ragged_dot(a, b, plan, precision, dtype, contract=(0, 0), group_dimension=None)


def _gate_column(gates: Array, plan: RoutingPlan, dtype: DTypeLike) -> Array:
    """[N, 1]; the gates by grouped row, zero without an expert."""
    return _group(gates.reshape(-1, 1), plan, "slots").astype(dtype)


def _bias_rows(bias: Array, plan: RoutingPlan, dtype: DTypeLike) -> Array:
    """[N, F]; each row's bias; any expert's where it has none."""
    expert = jnp.pad(plan.expert_of_row, (0, padded_rows(plan) - plan.num_slots))
    return take_rows(bias, jnp.minimum(expert, plan.num_experts - 1)).astype(dtype)


def matmul_forward(
    inputs: Array,
    weights: Array,
    plan: RoutingPlan,
    gates: Array | None,
    bias: Array | None,
    *,
    input_layout: str,
    output_layout: str,
    precision: jax.lax.Precision,
    output_dtype: DTypeLike,
) -> Array:
    """The outputs in `output_layout`."""
    grouped = _project(_group(inputs, plan, input_layout), weights, plan, precision)
    if bias is not None:
        grouped += _bias_rows(bias, plan, grouped.dtype)
    return ungroup(grouped, plan, output_layout, gates).astype(output_dtype)


def matmul_backward(
    inputs: Array,
    weights: Array,
    plan: RoutingPlan,
    gates: Array | None,
    bias: Array | None,
    cotangent: Array,
    *,
    input_layout: str,
    output_layout: str,
    precision: jax.lax.Precision,
) -> tuple[Array, Array, Array | None, Array | None]:
    """The gradients of inputs, weights, gates and bias."""
    dtype = compute_dtype(inputs)
    x = _group(inputs, plan, input_layout)
    dy = _group(cotangent, plan, output_layout)
    dx = _project(dy, weights, plan, precision, axis=2)
    dgates = dbias = None
    scaled = dy
    if gates is not None:
        gate = _gate_column(gates, plan, dtype)
        dgate = jnp.sum(dx * x, axis=1, keepdims=True)
        if bias is not None:
            dgate += jnp.sum(dy * _bias_rows(bias, plan, dtype), axis=1, keepdims=True)
        dgates = ungroup(dgate, plan, "slots")[..., 0].astype(gates.dtype)
        scaled = (dy * gate).astype(dy.dtype)
        dx = dx * gate
    if bias is not None:
        ones = jnp.ones((x.shape[0], 1), dy.dtype)
        dbias = _sum_products(ones, scaled, plan, precision)[:, 0].astype(bias.dtype)
    dweights = _sum_products(x, scaled, plan, precision).astype(weights.dtype)
    dinputs = ungroup(dx, plan, input_layout).astype(inputs.dtype).reshape(inputs.shape)
    return dinputs, dweights, dgates, dbias


def feed_forward_forward(
    inputs: Array,
    banks: Arrays,
    plan: RoutingPlan,
    gates: Array,
    *,
    activation: Activation,
    precision: jax.lax.Precision,
) -> tuple[Array, Arrays]:
    """The outputs [T, D] and the pre-activations [>= T*K, F]; `banks` is (down, up[, gate])."""
    x = _group(inputs, plan, "tokens")
    pre = tuple(_project(x, bank, plan, precision) for bank in banks[1:])
    hidden = hidden_layer(pre, activation).astype(inputs.dtype)
    y = _project(hidden, banks[0], plan, precision)
    outputs = ungroup(y, plan, "tokens", gates).astype(inputs.dtype)
    return outputs, tuple(p.astype(inputs.dtype) for p in pre)


def feed_forward_backward(
    inputs: Array,
    banks: Arrays,
    plan: RoutingPlan,
    gates: Array,
    pre_activations: Arrays,
    cotangent: Array,
    *,
    activation: Activation,
    precision: jax.lax.Precision,
) -> tuple[Array, Arrays, Array]:
    """The gradients of inputs, banks and gates."""
    dtype, narrow, routed = compute_dtype(inputs), inputs.dtype, _routed(plan)
    x, dy = _group(inputs, plan, "tokens"), _group(cotangent, plan, "tokens")
    gate = _gate_column(gates, plan, dtype)
    pre = tuple(p.astype(dtype) for p in pre_activations)
    hidden, pull = jax.vjp(lambda *p: hidden_layer(p, activation), *pre)
    dhidden = _project(dy, banks[0], plan, precision, axis=2)
    dgate = jnp.sum(dhidden * hidden, axis=1, keepdims=True)
    dpre = tuple(jnp.where(routed, d, 0).astype(narrow) for d in pull(dhidden * gate))
    scaled = jnp.where(routed, hidden * gate, 0).astype(narrow)
    dx = _project(dpre[0], banks[1], plan, precision, axis=2)
    for d, bank in zip(dpre[1:], banks[2:], strict=True):
        dx += _project(d, bank, plan, precision, axis=2)
    sums: Arrays = (_sum_products(scaled, dy, plan, precision),)
    sums += tuple(_sum_products(x, d, plan, precision) for d in dpre)
    dbanks = tuple(s.astype(bank.dtype) for s, bank in zip(sums, banks, strict=True))
    dgates = ungroup(dgate, plan, "slots")[..., 0].astype(gates.dtype)
    return ungroup(dx, plan, "tokens").astype(inputs.dtype), dbanks, dgates
