"""The four computations of the op on CPUs: useful rows only, tile by tile.

Measured on two AVX-512 cores: XLA's plain products run at 94-104 % of the rate of one large dense
product from 128 rows on; products that contract the first axis of both operands take a slower path
(72-92 %), hence `_dot_rows`.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from pallas_kernels.grouped_matmul.hidden_layer import Activation, hidden_layer
from pallas_kernels.grouped_matmul.plan import RoutingPlan
from pallas_kernels.grouped_matmul.rows import gates_by_row, take_rows, ungroup
from pallas_kernels.grouped_matmul.xla.block_sizes import tile_heights
from pallas_kernels.grouped_matmul.xla.tile_loop import Arrays, Tile, loop_over_experts


def compute_dtype(x: Array) -> DTypeLike:
    """float32, or wider if x is."""
    return jnp.promote_types(jnp.float32, x.dtype)


def _dot(a: Array, b: Array, b_axis: int, precision: jax.lax.Precision) -> Array:
    """Contracts the last axis of a with `b_axis` of b."""
    axes = (((1,), (b_axis,)), ((), ()))
    return jax.lax.dot_general(a, b, axes, precision=precision, preferred_element_type=a.dtype)


def _dot_rows(a: Array, b: Array, precision: jax.lax.Precision) -> Array:
    """a.T @ b. The barrier keeps XLA from folding the transpose into its slower product."""
    return _dot(jax.lax.optimization_barrier(a.T), b, 0, precision)


def _heights(plan: RoutingPlan) -> tuple[int, ...]:
    return tile_heights(plan.num_slots, plan.num_experts)


def padded_rows(plan: RoutingPlan) -> int:
    """Rows of a row buffer: T*K, and a tile that may reach beyond."""
    return plan.num_slots + _heights(plan)[-1]


def _row_buffer(plan: RoutingPlan, width: int, dtype: DTypeLike) -> Array:
    return jnp.zeros((padded_rows(plan), width), dtype)


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
    dtype = compute_dtype(inputs)

    def body(tile: Tile, mine: Arrays) -> tuple[Arrays, Arrays]:
        x = tile.gather(inputs, plan, input_layout, dtype)
        y = _dot(x, mine[0].astype(dtype), 0, precision)
        return (y if bias is None else y + mine[1].astype(dtype),), ()

    banks = (weights,) if bias is None else (weights, bias)
    buffers = (_row_buffer(plan, weights.shape[2], dtype),)
    (grouped,), _ = loop_over_experts(plan, _heights(plan), banks, buffers, (), body)
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
    scale = None if gates is None else gates_by_row(gates, plan, dtype)

    def body(tile: Tile, mine: Arrays) -> tuple[Arrays, Arrays]:
        x = tile.gather(inputs, plan, input_layout, dtype)
        dy = tile.gather(cotangent, plan, output_layout, dtype)
        dx = _dot(dy, mine[0].astype(dtype), 1, precision)
        rows: Arrays = (dx,)
        own = tile.own()
        kept = own.astype(dtype)
        if scale is not None:
            gate = take_rows(scale, tile.rows())[:, None]
            kept = jnp.where(own, gate, 0)
            dgate = jnp.sum(dx * x, axis=1)
            if bias is not None:
                dgate += jnp.sum(dy * mine[1].astype(dtype), axis=1)
            rows = (dx * gate, dgate[:, None])
        terms: Arrays = (_dot_rows(x * kept, dy, precision),)
        if bias is not None:
            terms += (jnp.sum(dy * kept, axis=0),)
        return rows, terms

    buffers: Arrays = (_row_buffer(plan, weights.shape[1], dtype),)
    if gates is not None:
        buffers += (_row_buffer(plan, 1, dtype),)
    banks = (weights,) if bias is None else (weights, bias)
    sums = tuple(jnp.zeros_like(w) for w in banks)
    rows, sums = loop_over_experts(plan, _heights(plan), banks, buffers, sums, body)
    dinputs = ungroup(rows[0], plan, input_layout).astype(inputs.dtype)
    dgates = None
    if gates is not None:
        dgates = ungroup(rows[1], plan, "slots")[..., 0].astype(gates.dtype)
    return dinputs.reshape(inputs.shape), sums[0], dgates, None if bias is None else sums[1]


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
    dtype = compute_dtype(inputs)

    def body(tile: Tile, mine: Arrays) -> tuple[Arrays, Arrays]:
        x = tile.gather(inputs, plan, "tokens", dtype)
        pre = tuple(_dot(x, w.astype(dtype), 0, precision) for w in mine[1:])
        y = _dot(hidden_layer(pre, activation), mine[0].astype(dtype), 0, precision)
        return (y, *pre), ()

    _, width, out_width = banks[0].shape
    buffers: Arrays = (_row_buffer(plan, out_width, dtype),)
    buffers += tuple(_row_buffer(plan, width, inputs.dtype) for _ in banks[1:])
    (grouped, *pre), _ = loop_over_experts(plan, _heights(plan), banks, buffers, (), body)
    return ungroup(grouped, plan, "tokens", gates).astype(inputs.dtype), tuple(pre)


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
    dtype = compute_dtype(inputs)
    scale = gates_by_row(gates, plan, dtype)

    def body(tile: Tile, mine: Arrays) -> tuple[Arrays, Arrays]:
        x = tile.gather(inputs, plan, "tokens", dtype)
        dy = tile.gather(cotangent, plan, "tokens", dtype)
        own = tile.own()
        gate = take_rows(scale, tile.rows())[:, None]
        pre = tuple(tile.slice(p, dtype) for p in pre_activations)
        hidden, pull = jax.vjp(lambda *p: hidden_layer(p, activation), *pre)
        dhidden = _dot(dy, mine[0].astype(dtype), 1, precision)
        dgate = jnp.sum(dhidden * hidden, axis=1)
        # Surplus rows of the pre-activations are another expert's: select them away.
        dpre = tuple(jnp.where(own, d, 0) for d in pull(dhidden * gate))
        dx = _dot(dpre[0], mine[1].astype(dtype), 1, precision)
        for d, w in zip(dpre[1:], mine[2:], strict=True):
            dx += _dot(d, w.astype(dtype), 1, precision)
        ddown = _dot_rows(jnp.where(own, hidden * gate, 0), dy, precision)
        return (dx, dgate[:, None]), (ddown, *(_dot_rows(x, d, precision) for d in dpre))

    buffers = (_row_buffer(plan, inputs.shape[1], dtype), _row_buffer(plan, 1, dtype))
    sums = tuple(jnp.zeros_like(w) for w in banks)
    (dx, dgate), sums = loop_over_experts(plan, _heights(plan), banks, buffers, sums, body)
    dgates = ungroup(dgate, plan, "slots")[..., 0].astype(gates.dtype)
    return ungroup(dx, plan, "tokens").astype(inputs.dtype), sums, dgates
