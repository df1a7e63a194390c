"""Sparse expert dispatch in plain XLA, for CPUs: useful rows only, tile by tile.

What the backward pass keeps beyond the arguments:
- `grouped_matmul`: nothing. The gradient of the gates comes from the product that the gradient of
  the inputs needs anyway: <dy, x W> = <dy W^T, x>.
- `grouped_feed_forward`: the pre-activations, [T*K, F] in the dtype of the inputs (two of them with
  `gate_weights`). The activation is computed again; the gradient of the gates is <dy down^T, a>.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.custom_batching import sequential_vmap

from pallas_kernels.grouped_matmul.block_sizes import tile_heights
from pallas_kernels.grouped_matmul.plan import RoutingPlan
from pallas_kernels.grouped_matmul.rows import (
    flatten_rows,
    gates_by_row,
    grouped_reader,
    tile_reader,
    ungroup,
)
from pallas_kernels.grouped_matmul.tile_loop import loop_over_experts


def _compute_dtype(x: Array) -> jnp.dtype:
    return jnp.promote_types(jnp.float32, x.dtype)


def _dot(a: Array, b: Array, a_axis: int, b_axis: int, precision: jax.lax.Precision) -> Array:
    return jax.lax.dot_general(
        a, b, (((a_axis,), (b_axis,)), ((), ())), precision=precision, preferred_element_type=a.dtype
    )


def _heights(plan: RoutingPlan) -> tuple[int, ...]:
    return tile_heights(plan.num_slots, plan.num_experts)


# ------------------------------------------------------------------------------ grouped matmul


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6, 7, 8))
def _matmul(
    inputs: Array,
    weights: Array,
    plan: RoutingPlan,
    gates: Array | None,
    bias: Array | None,
    input_layout: str,
    output_layout: str,
    precision: jax.lax.Precision,
    output_dtype: jnp.dtype,
) -> Array:
    dtype, heights = _compute_dtype(inputs), _heights(plan)

    @sequential_vmap
    def forward(inputs, weights, plan, gates, bias):  # type: ignore[no-untyped-def]
        read = tile_reader(inputs, plan, input_layout, heights[-1], dtype)
        banks = (weights,) if bias is None else (weights, bias)

        def tile(height: int, start: Array, count: Array, mine: tuple[Any, ...]):  # type: ignore[no-untyped-def]
            y = _dot(read(start, height, count), mine[0].astype(dtype), 1, 0, precision)
            if bias is not None:
                y = y + mine[1].astype(dtype)
            return (y,), ()

        buffer = jnp.zeros((plan.num_slots + heights[-1], weights.shape[2]), dtype)
        (grouped,), _ = loop_over_experts(plan, heights, banks, (buffer,), (), tile)
        return ungroup(grouped, plan, output_layout, gates).astype(output_dtype)

    return forward(inputs, weights, plan, gates, bias)


def _matmul_forward(
    inputs, weights, plan, gates, bias, input_layout, output_layout, precision, output_dtype
):  # type: ignore[no-untyped-def]
    outputs = _matmul(
        inputs, weights, plan, gates, bias, input_layout, output_layout, precision, output_dtype
    )
    return outputs, (inputs, weights, plan, gates, bias)


def _matmul_backward(input_layout, output_layout, precision, output_dtype, saved, cotangent):  # type: ignore[no-untyped-def]
    inputs, weights, plan, gates, bias = saved
    dtype, heights = _compute_dtype(inputs), _heights(plan)

    @sequential_vmap
    def backward(inputs, weights, plan, gates, bias, cotangent):  # type: ignore[no-untyped-def]
        height_limit = heights[-1]
        rows = plan.num_slots + height_limit
        read = tile_reader(inputs, plan, input_layout, height_limit, dtype)
        read_cotangent = tile_reader(cotangent, plan, output_layout, height_limit, dtype)
        if gates is not None:
            by_row = jnp.pad(gates_by_row(gates, plan, dtype), ((0, height_limit), (0, 0)))

        def tile(height: int, start: Array, count: Array, mine: tuple[Any, ...]):  # type: ignore[no-untyped-def]
            x, dy = read(start, height, count), read_cotangent(start, height, count)
            dx = _dot(dy, mine[0].astype(dtype), 1, 1, precision)
            out: tuple[Array, ...] = ()
            if gates is not None:
                gate = jax.lax.dynamic_slice_in_dim(by_row, start, height)
                dgate = jnp.sum(dx * x, axis=1, keepdims=True)
                if bias is not None:
                    dgate += jnp.sum(dy * mine[1].astype(dtype), axis=1, keepdims=True)
                out = (dgate,)
                dx = dx * gate
                dy = dy * gate
            terms = (_dot(x, dy, 0, 0, precision),)
            if bias is not None:
                terms += (jnp.sum(dy, axis=0),)
            return (dx, *out), terms

        buffers = (jnp.zeros((rows, weights.shape[1]), dtype),)
        if gates is not None:
            buffers += (jnp.zeros((rows, 1), dtype),)
        sums = (jnp.zeros(weights.shape, weights.dtype),)
        banks = (weights,)
        if bias is not None:
            sums += (jnp.zeros(bias.shape, bias.dtype),)
            banks += (bias,)
        grouped, sums = loop_over_experts(plan, heights, banks, buffers, sums, tile)
        dinputs = ungroup(grouped[0], plan, input_layout).astype(inputs.dtype)
        dgates = dbias = None
        if gates is not None:
            dgates = ungroup(grouped[1], plan, "slots").reshape(gates.shape).astype(gates.dtype)
        if bias is not None:
            dbias = sums[1]
        return dinputs, sums[0], dgates, dbias

    dinputs, dweights, dgates, dbias = backward(inputs, weights, plan, gates, bias, cotangent)
    return dinputs, dweights, None, dgates, dbias


_matmul.defvjp(_matmul_forward, _matmul_backward)


def grouped_matmul(
    inputs: Array,
    weights: Array,
    plan: RoutingPlan,
    gates: Array | None,
    bias: Array | None,
    *,
    input_layout: str,
    output_layout: str,
    precision: jax.lax.Precision,
    output_dtype: jnp.dtype,
) -> Array:
    """See `pallas_kernels.grouped_matmul.grouped_matmul`; arguments are validated already."""
    return _matmul(
        inputs, weights, plan, gates, bias, input_layout, output_layout, precision, output_dtype
    )


# ------------------------------------------------------------------------------- feed-forward


def _hidden(
    pre: tuple[Array, ...], activation: Callable[[Array], Array]
) -> Array:
    """The hidden layer from the pre-activations (up,) or (up, gate)."""
    return activation(pre[0]) if len(pre) == 1 else activation(pre[1]) * pre[0]


def _feed_forward_rows(inputs, up, down, plan, gates, gate_weights, activation, precision):  # type: ignore[no-untyped-def]
    dtype, heights = _compute_dtype(inputs), _heights(plan)

    @sequential_vmap
    def forward(inputs, up, down, plan, gates, gate_weights):  # type: ignore[no-untyped-def]
        rows = plan.num_slots + heights[-1]
        read = tile_reader(inputs, plan, "tokens", heights[-1], dtype)
        first = (up,) if gate_weights is None else (up, gate_weights)

        def tile(height: int, start: Array, count: Array, mine: tuple[Any, ...]):  # type: ignore[no-untyped-def]
            x = read(start, height, count)
            pre = tuple(_dot(x, w.astype(dtype), 1, 0, precision) for w in mine[1:])
            y = _dot(_hidden(pre, activation), mine[0].astype(dtype), 1, 0, precision)
            return (y, *pre), ()

        buffers = (jnp.zeros((rows, down.shape[2]), dtype),)
        buffers += tuple(jnp.zeros((rows, up.shape[2]), inputs.dtype) for _ in first)
        (grouped, *pre), _ = loop_over_experts(plan, heights, (down, *first), buffers, (), tile)
        return ungroup(grouped, plan, "tokens", gates).astype(inputs.dtype), tuple(pre)

    return forward(inputs, up, down, plan, gates, gate_weights)


@functools.partial(jax.custom_vjp, nondiff_argnums=(6, 7))
def _feed_forward(inputs, up, down, plan, gates, gate_weights, activation, precision):  # type: ignore[no-untyped-def]
    return _feed_forward_rows(
        inputs, up, down, plan, gates, gate_weights, activation, precision
    )[0]


def _feed_forward_forward(inputs, up, down, plan, gates, gate_weights, activation, precision):  # type: ignore[no-untyped-def]
    outputs, pre = _feed_forward_rows(
        inputs, up, down, plan, gates, gate_weights, activation, precision
    )
    return outputs, (inputs, up, down, plan, gates, gate_weights, pre)


def _feed_forward_backward(activation, precision, saved, cotangent):  # type: ignore[no-untyped-def]
    inputs, up, down, plan, gates, gate_weights, pre = saved
    dtype, heights = _compute_dtype(inputs), _heights(plan)

    @sequential_vmap
    def backward(inputs, up, down, plan, gates, gate_weights, pre, cotangent):  # type: ignore[no-untyped-def]
        height_limit = heights[-1]
        rows = plan.num_slots + height_limit
        read = tile_reader(inputs, plan, "tokens", height_limit, dtype)
        read_cotangent = tile_reader(cotangent, plan, "tokens", height_limit, dtype)
        read_pre = [grouped_reader(p, dtype) for p in pre]
        by_row = jnp.pad(gates_by_row(gates, plan, dtype), ((0, height_limit), (0, 0)))
        first = (up,) if gate_weights is None else (up, gate_weights)

        def tile(height: int, start: Array, count: Array, mine: tuple[Any, ...]):  # type: ignore[no-untyped-def]
            x, dy = read(start, height, count), read_cotangent(start, height, count)
            gate = jax.lax.dynamic_slice_in_dim(by_row, start, height)
            hidden, pull = jax.vjp(
                lambda *pre: _hidden(pre, activation), *(r(start, height, count) for r in read_pre)
            )
            dhidden = _dot(dy, mine[0].astype(dtype), 1, 1, precision)
            dgate = jnp.sum(dhidden * hidden, axis=1, keepdims=True)
            dpre = pull(dhidden * gate)
            dx = sum(
                _dot(d, w.astype(dtype), 1, 1, precision)
                for d, w in zip(dpre, mine[1:], strict=True)
            )
            ddown = _dot(hidden * gate, dy, 0, 0, precision)
            dfirst = tuple(_dot(x, d, 0, 0, precision) for d in dpre)
            return (dx, dgate), (ddown, *dfirst)

        buffers = (jnp.zeros((rows, up.shape[1]), dtype), jnp.zeros((rows, 1), dtype))
        sums = tuple(jnp.zeros(w.shape, w.dtype) for w in (down, *first))
        (dx, dgate), sums = loop_over_experts(
            plan, heights, (down, *first), buffers, sums, tile
        )
        dinputs = ungroup(dx, plan, "tokens").astype(inputs.dtype)
        dgates = ungroup(dgate, plan, "slots").reshape(gates.shape).astype(gates.dtype)
        return dinputs, sums, dgates

    dinputs, sums, dgates = backward(inputs, up, down, plan, gates, gate_weights, pre, cotangent)
    dgate_weights = None if gate_weights is None else sums[2]
    return dinputs, sums[1], sums[0], None, dgates, dgate_weights


_feed_forward.defvjp(_feed_forward_forward, _feed_forward_backward)


def grouped_feed_forward(
    inputs: Array,
    up: Array,
    down: Array,
    plan: RoutingPlan,
    gates: Array,
    gate_weights: Array | None,
    *,
    activation: Callable[[Array], Array],
    precision: jax.lax.Precision,
) -> Array:
    """See `pallas_kernels.grouped_matmul.grouped_feed_forward`; arguments are validated already."""
    return _feed_forward(inputs, up, down, plan, gates, gate_weights, activation, precision)
