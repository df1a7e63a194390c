"""The parts of a layer as programs of their own, for reports of what their kernels take."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from pallas_kernels.compile_report.program import Program
from pallas_kernels.grouped_matmul import (
    RoutingPlan,
    grouped_feed_forward,
    grouped_matmul,
    routing_plan,
)
from pallas_kernels.stickbreaking_attention import stickbreaking_attention

TOKENS = 16_384
"""Enough that tiles which a routing fills in part cost as little as in a real step."""

ROWS = 4
"""Of attention: enough for every core."""


def feed_forward(*, width: int, hidden: int, experts: int, top_k: int, gated: bool) -> Program:
    """Builds feed-forward experts, forward and backward."""

    def run(x: Array, up: Array, down: Array, gate: Array, gates: Array, plan: RoutingPlan) -> Any:
        y = grouped_feed_forward(
            x,
            up,
            down,
            plan,
            gates,
            gate_weights=gate if gated else None,
            activation="silu" if gated else "gelu_tanh",
            implementation="tpu",
        )
        return jnp.square(y.astype(jnp.float32)).sum()

    inwards, outwards = (experts, width, hidden), (experts, hidden, width)
    weights = (_shape(*inwards), _shape(*outwards), _shape(*inwards))
    wanted = (0, 1, 2, 3, 4) if gated else (0, 1, 2, 4)
    return Program(
        jax.grad(run, argnums=wanted),
        (_shape(TOKENS, width), *weights, _gates(top_k), _routing(experts, top_k)),
    )


def projections(*, width: int, query_width: int, experts: int, top_k: int) -> Program:
    """Builds the query and output banks of attention experts, forward and backward."""

    def run(
        x: Array, slots: Array, query: Array, output: Array, gates: Array, plan: RoutingPlan
    ) -> Any:
        queries = grouped_matmul(x, query, plan, output_layout="slots", implementation="tpu")
        y = grouped_matmul(
            slots,
            output,
            plan,
            input_layout="slots",
            output_layout="tokens",
            gates=gates,
            implementation="tpu",
        )
        return sum(jnp.square(value.astype(jnp.float32)).sum() for value in (queries, y))

    return Program(
        jax.grad(run, argnums=(0, 1, 2, 3, 4)),
        (
            _shape(TOKENS, width),
            _shape(TOKENS, top_k, query_width),
            _shape(experts, width, query_width),
            _shape(experts, query_width, width),
            _gates(top_k),
            _routing(experts, top_k),
        ),
    )


def attention(*, heads: int, key_heads: int, head_width: int, sequence: int) -> Program:
    """Builds stick-breaking attention of some rows, forward and backward."""

    def run(query: Array, key: Array, value: Array) -> Any:
        output = stickbreaking_attention(
            query, key, value, attend_current=True, implementation="tpu"
        ).output
        return jnp.square(output.astype(jnp.float32)).sum()

    keys = _shape(ROWS, sequence, key_heads, head_width)
    queries = _shape(ROWS, sequence, heads, head_width)
    return Program(jax.grad(run, argnums=(0, 1, 2)), (queries, keys, keys))


def _shape(*dimensions: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(dimensions, jnp.bfloat16)


def _gates(top_k: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((TOKENS, top_k), jnp.float32)


def _routing(experts: int, top_k: int) -> RoutingPlan:
    """Returns a random choice in which all experts are equally likely."""
    generator = np.random.default_rng(0)
    scores = generator.random((TOKENS, experts))
    return routing_plan(jnp.asarray(np.argsort(scores, axis=1)[:, :top_k], jnp.int32), experts)


def useful_flops(part: str, shape: dict[str, int]) -> float:
    """Returns the useful operations of a part's forward pass."""
    match part:
        case "feed_forward":
            products = 3 if shape["gated"] else 2
            return 2.0 * TOKENS * shape["top_k"] * shape["width"] * shape["hidden"] * products
        case "projections":
            return 4.0 * TOKENS * shape["top_k"] * shape["width"] * shape["query_width"]
        case "attention":
            pairs = ROWS * shape["sequence"] * (shape["sequence"] + 1) / 2
            return 4.0 * pairs * shape["heads"] * shape["head_width"]
    raise ValueError(f"part {part!r} is unknown")
