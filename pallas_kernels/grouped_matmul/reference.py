"""The dense reference: every expert multiplies every row, and a mask keeps the right ones.

Obviously right, E times too expensive, differentiated by plain autodiff. All arithmetic is done in
float32 (float64 for float64 inputs). It defines what the other implementations must compute.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from pallas_kernels.grouped_matmul.plan import RoutingPlan


def _multiply(rows: Array, weights: Array, chosen: Array, precision: jax.lax.Precision) -> Array:
    """[N, D] rows by the [E, D, F] weights that the one-hot [N, E] picks, to [N, F]."""
    # Selected on both sides, never multiplied by 0: what an expert does not take may hold anything.
    taken = jnp.swapaxes(chosen, 0, 1)[:, :, None]
    products = jnp.einsum("end,edf->enf", jnp.where(taken, rows, 0), weights, precision=precision)
    return jnp.sum(jnp.where(taken, products, 0), axis=0)


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
    compute = jnp.promote_types(jnp.float32, inputs.dtype)
    k = plan.experts_per_token
    rows = inputs.astype(compute)
    if input_layout == "tokens":
        rows = jnp.repeat(rows, k, axis=0)
    elif input_layout == "slots":
        rows = rows.reshape(plan.num_slots, -1)
    else:
        rows = rows[plan.inverse]
    chosen = plan.expert_of_row[plan.inverse][:, None] == jnp.arange(plan.num_experts)
    outputs = _multiply(rows, weights.astype(compute), chosen, precision)
    if bias is not None:
        picked = jnp.where(chosen[:, :, None], bias.astype(compute), 0)
        outputs = outputs + jnp.sum(picked, axis=1)
    if output_layout == "grouped":
        outputs = outputs[plan.order]
    else:
        outputs = outputs.reshape(plan.num_tokens, k, -1)
    if output_layout == "tokens":
        assert gates is not None
        routed = plan.slot_is_routed.reshape(gates.shape)
        scale = jnp.where(routed, gates.astype(compute), 0)
        outputs = jnp.sum(outputs * scale[:, :, None], axis=1)
    return outputs.astype(output_dtype)


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
    compute = jnp.promote_types(jnp.float32, inputs.dtype)

    def project(weights: Array) -> Array:
        return grouped_matmul(
            inputs.astype(compute),
            weights.astype(compute),
            plan,
            None,
            None,
            input_layout="tokens",
            output_layout="slots",
            precision=precision,
            output_dtype=compute,
        )

    hidden = project(up)
    if gate_weights is None:
        hidden = activation(hidden)
    else:
        hidden = activation(project(gate_weights)) * hidden
    outputs = grouped_matmul(
        hidden,
        down.astype(compute),
        plan,
        gates,
        None,
        input_layout="slots",
        output_layout="tokens",
        precision=precision,
        output_dtype=compute,
    )
    return outputs.astype(inputs.dtype)
