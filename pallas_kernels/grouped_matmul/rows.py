"""Moving rows between the layouts: by token, by slot, and grouped by expert.

Nothing here scatters: going back to tokens or slots gathers through the inverse permutation, which
is deterministic and needs no initialised target.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from pallas_kernels.grouped_matmul.plan import RoutingPlan


def row_index(plan: RoutingPlan, layout: str) -> Array:
    """int32 [T*K]; where in an array of `layout`, flattened to rows, each grouped row lies."""
    if layout == "tokens":
        return plan.token_of_row
    if layout == "slots":
        return plan.order
    return jnp.arange(plan.num_slots, dtype=jnp.int32)


def flatten_rows(x: Array, layout: str) -> Array:
    """[T, D], [T, K, D] or [T*K, D] to rows [T or T*K, D]."""
    return x.reshape(-1, x.shape[-1]) if layout == "slots" else x


def take_rows(rows: Array, index: Array) -> Array:
    """Gathers rows by an index that is known to be in bounds."""
    return rows.at[index].get(mode="promise_in_bounds")


def group_rows(x: Array, plan: RoutingPlan, layout: str) -> Array:
    """Brings an array of any layout into grouped order, [T*K, D]."""
    rows = flatten_rows(x, layout)
    return rows if layout == "grouped" else take_rows(rows, row_index(plan, layout))


def gates_by_row(gates: Array, plan: RoutingPlan, dtype: DTypeLike) -> Array:
    """[T, K] gates in grouped order, [T*K]."""
    return take_rows(gates.reshape(-1), plan.order).astype(dtype)


def ungroup(grouped: Array, plan: RoutingPlan, layout: str, gates: Array | None = None) -> Array:
    """Brings grouped rows to a layout.

    Args:
        grouped: [at least T*K, F]; rows without an expert may hold anything, rows past T*K are
            ignored.
        plan: the routing plan.
        layout: "grouped" gives [T*K, F], "slots" [T, K, F], "tokens" the sum over K [T, F].
        gates: [T, K], weights of the sum for "tokens"; ones if None.
    """
    if layout == "grouped":
        routed = jnp.arange(plan.num_slots, dtype=jnp.int32) < plan.group_offsets[-1]
        return jnp.where(routed[:, None], grouped[: plan.num_slots], 0)
    shape = (plan.num_tokens, plan.experts_per_token)
    index, routed = plan.inverse.reshape(shape), plan.slot_is_routed.reshape(shape)
    if layout == "slots":
        return jnp.where(routed[..., None], take_rows(grouped, index), 0)
    total = jnp.zeros((plan.num_tokens, grouped.shape[-1]), grouped.dtype)
    for k in range(plan.experts_per_token):
        picked = take_rows(grouped, index[:, k])
        if gates is not None:
            picked = picked * gates[:, k, None].astype(grouped.dtype)
        total += jnp.where(routed[:, k, None], picked, 0)
    return total
