"""Contenders for sparse experts: ours, and grouped products with the copies they need around them.

Every contender is a function of (inputs, weights..., gates, plan) for the same plan. A grouped
product takes rows that are gathered (T*K of them) and gives rows that are summed by their gates, a
choice at a time, because an array [T, K, D] is padded to eight slots in a TPU's tiles. Their
backward passes gather too, in place of the scatter-add that automatic differentiation would make of
a gather: the way in which those products are used at their best.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from pallas_kernels.benchmarks.cases import EXPERT_CASES, ExpertCase
from pallas_kernels.compile_report.program import Program
from pallas_kernels.grouped_matmul import RoutingPlan, grouped_feed_forward, grouped_matmul

GroupedProduct = Callable[[Array, Array, Array], Array]
Contender = Callable[..., Array]


@jax.custom_vjp
def gather_rows(inputs: Array, plan: RoutingPlan) -> Array:
    """[T, D] to the grouped rows [T*K, D]."""
    return inputs[plan.token_of_row]


def _gather_forward(inputs: Array, plan: RoutingPlan) -> tuple[Array, RoutingPlan]:
    return gather_rows(inputs, plan), plan


def _gather_backward(plan: RoutingPlan, gradient: Array) -> tuple[Array, None]:
    # A slot at a time: an array [T, K, D] would be padded to eight slots in a TPU's tiles.
    rows = (gradient[rows].astype(jnp.float32) for rows in _rows_by_choice(plan))
    return functools.reduce(jnp.add, rows).astype(gradient.dtype), None


def _rows_by_choice(plan: RoutingPlan) -> list[Array]:
    """For each of the K choices, the grouped row of every token [T]."""
    return list(plan.inverse.reshape(plan.num_tokens, plan.experts_per_token).T)


gather_rows.defvjp(_gather_forward, _gather_backward)


@jax.custom_vjp
def order_slots(rows: Array, plan: RoutingPlan) -> Array:
    """Grouped rows [T*K, D] to the order of slots, [T, K, D]."""
    return rows[plan.inverse].reshape(plan.num_tokens, plan.experts_per_token, -1)


def _order_forward(rows: Array, plan: RoutingPlan) -> tuple[Array, RoutingPlan]:
    return order_slots(rows, plan), plan


def _order_backward(plan: RoutingPlan, gradient: Array) -> tuple[Array, None]:
    return gradient.reshape(plan.num_slots, -1)[plan.order], None


order_slots.defvjp(_order_forward, _order_backward)


@jax.custom_vjp
def sum_by_gates(rows: Array, gates: Array, plan: RoutingPlan) -> Array:
    """Grouped rows [T*K, D] to the sums of each token's rows by its gates, [T, D]."""
    columns = enumerate(_rows_by_choice(plan))
    weighted = (gates[:, k, None] * rows[index].astype(jnp.float32) for k, index in columns)
    return functools.reduce(jnp.add, weighted).astype(rows.dtype)


def _sum_forward(rows: Array, gates: Array, plan: RoutingPlan) -> tuple[Array, Any]:
    return sum_by_gates(rows, gates, plan), (rows, gates, plan)


def _sum_backward(residuals: Any, gradient: Array) -> tuple[Array, Array, None]:
    rows, gates, plan = residuals
    by_row = gates.reshape(-1)[plan.order][:, None]
    d_rows = by_row * gradient[plan.token_of_row].astype(jnp.float32)
    wide = gradient.astype(jnp.float32)
    products = [(wide * rows[index]).sum(axis=1) for index in _rows_by_choice(plan)]
    return d_rows.astype(rows.dtype), jnp.stack(products, axis=1).astype(gates.dtype), None


sum_by_gates.defvjp(_sum_forward, _sum_backward)


def through_attention(slots: Array) -> Array:
    """Keeps apart what attention stands between, [T, K, D].

    It reads and writes the slots of a sequence as rows, one position's after another's, as grouped
    queries of one head: the array is never laid out with an axis of K. Several heads of an expert
    take a change of layout, which is attention's and left out for all contenders.
    """
    rows = jax.lax.optimization_barrier(slots.reshape(-1, slots.shape[-1]))
    return rows.reshape(slots.shape)


def with_copies(product: GroupedProduct, kind: str) -> Contender:
    """A layer of experts out of a grouped product of rows that are sorted already."""

    def feed_forward(inputs: Array, up: Array, down: Array, gates: Array, plan: Any) -> Array:
        hidden = product(gather_rows(inputs, plan), up, plan.group_sizes)
        rows = product(jax.nn.gelu(hidden, approximate=True), down, plan.group_sizes)
        return sum_by_gates(rows, gates, plan)

    def projection(inputs: Array, up: Array, down: Array, gates: Array, plan: Any) -> Array:
        mapped = order_slots(product(gather_rows(inputs, plan), up, plan.group_sizes), plan)
        rows = through_attention(mapped).reshape(plan.num_slots, -1)[plan.order]
        rows = product(rows, down, plan.group_sizes)
        return sum_by_gates(rows, gates, plan)

    return feed_forward if kind == "feed_forward" else projection


def ours(implementation: str | None, kind: str) -> Contender:
    """The public op."""

    def feed_forward(inputs: Array, up: Array, down: Array, gates: Array, plan: Any) -> Array:
        return grouped_feed_forward(inputs, up, down, plan, gates, implementation=implementation)

    def projection(inputs: Array, up: Array, down: Array, gates: Array, plan: Any) -> Array:
        mapped = grouped_matmul(
            inputs, up, plan, output_layout="slots", implementation=implementation
        )
        return grouped_matmul(
            through_attention(mapped),
            down,
            plan,
            input_layout="slots",
            output_layout="tokens",
            gates=gates,
            implementation=implementation,
        )

    return feed_forward if kind == "feed_forward" else projection


def megablox(inputs: Array, weights: Array, sizes: Array) -> Array:
    """The megablox of jax, in tiles that keep its inner loop at the limit of the matrix units."""
    gmm = importlib.import_module("jax.experimental.pallas.ops.tpu.megablox").gmm
    width, columns = weights.shape[1:]
    tiling = (512, min(1024, width), min(1024, columns))
    return gmm(inputs, weights, sizes, preferred_element_type=inputs.dtype, tiling=tiling)


def ragged_dot(inputs: Array, weights: Array, sizes: Array) -> Array:
    """XLA's own."""
    return jax.lax.ragged_dot(inputs, weights, sizes)


def tokamax(inputs: Array, weights: Array, sizes: Array) -> Array:
    """The Mosaic kernel of tokamax; its automatic choice falls back to XLA without saying so."""
    product = importlib.import_module("tokamax").ragged_dot
    return product(inputs, weights, sizes, implementation="mosaic")


def hopper_ragged_dot(inputs: Array, weights: Array, sizes: Array) -> Array:
    """The Mosaic GPU kernel of jax; forward only."""
    module = importlib.import_module("jax.experimental.pallas.ops.gpu.ragged_dot_mgpu")
    return module.ragged_dot(
        inputs,
        weights,
        group_sizes=sizes,
        block_m=128,
        block_n=128,
        block_k=64,
        max_concurrent_steps=4,
        grid_block_n=2,
    )


PRODUCTS: dict[str, GroupedProduct] = {
    "megablox": megablox,
    "ragged_dot": ragged_dot,
    "tokamax": tokamax,
    "hopper_ragged_dot": hopper_ragged_dot,
}


def contender(name: str, kind: str) -> Contender:
    """The contender of that name: one of `PRODUCTS`, or an implementation of ours."""
    return with_copies(PRODUCTS[name], kind) if name in PRODUCTS else ours(name, kind)


def forward_and_backward(layer: Contender) -> Callable[..., Any]:
    """The output, and the gradients of all float arguments for a given gradient of the output."""

    def run(inputs: Array, up: Array, down: Array, gates: Array, plan: Any, gradient: Array) -> Any:
        output, pull_back = jax.vjp(lambda *floats: layer(*floats, plan), inputs, up, down, gates)
        return output, pull_back(gradient)

    return run


def expert_program(
    case: str, name: str, direction: str, overrides: dict[str, Any] | None = None
) -> Program:
    """A program for the compile-time report.

    Args:
        case: a name of `EXPERT_CASES`.
        name: of a contender.
        direction: "forward" or "forward_backward".
        overrides: of fields of the case.
    """
    shape = dataclasses.replace(EXPERT_CASES[case], **(overrides or {}))
    bf16 = jnp.bfloat16
    plan = jax.tree.map(np.asarray, shape.plan())
    layer = contender(name, shape.kind)
    arguments = (*float_shapes(shape, bf16), plan)
    if direction == "forward":
        return Program(layer, arguments)
    gradient = jax.ShapeDtypeStruct((shape.tokens, shape.width), bf16)
    return Program(forward_and_backward(layer), (*arguments, gradient))


def float_shapes(case: ExpertCase, dtype: Any) -> tuple[jax.ShapeDtypeStruct, ...]:
    """Inputs [T, D], up [E, D, F], down [E, F, D], gates [T, K]."""
    shapes = (
        (case.tokens, case.width),
        (case.experts, case.width, case.hidden),
        (case.experts, case.hidden, case.width),
        (case.tokens, case.experts_per_token),
    )
    dtypes = (dtype, dtype, dtype, jnp.float32)
    return tuple(jax.ShapeDtypeStruct(s, d) for s, d in zip(shapes, dtypes, strict=True))
