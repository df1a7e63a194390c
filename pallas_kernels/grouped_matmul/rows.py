"""Moving rows between the layouts: by token, by slot, and grouped by expert.

Nothing here scatters: going back to tokens or slots gathers through the inverse permutation, which
is deterministic and needs no initialised target.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from pallas_kernels.grouped_matmul.plan import RoutingPlan

# Called with the first grouped row, the number of rows M (static) and how many of them count;
# returns [M, D] with zeros in the rows that do not count.
TileReader = Callable[[Array, int, Array], Array]


def _pad_rows(x: Array, padding: int) -> Array:
    return jnp.pad(x, ((0, padding),) + ((0, 0),) * (x.ndim - 1))


def _keep(x: Array, count: Array) -> Array:
    """Zeros the rows of x [M, ...] from `count` on."""
    kept = jnp.arange(x.shape[0], dtype=jnp.int32) < count
    return jnp.where(kept.reshape((-1,) + (1,) * (x.ndim - 1)), x, 0)


def row_index(plan: RoutingPlan, layout: str) -> Array:
    """int32 [T*K]; where in an array of `layout`, flattened to rows, each grouped row lies."""
    if layout == "tokens":
        return plan.token_of_row
    if layout == "slots":
        return plan.order
    return jnp.arange(plan.num_slots, dtype=jnp.int32)


def flatten_rows(x: Array, layout: str) -> Array:
    """[T, D], [T, K, D] or [T*K, D] to rows."""
    return x.reshape(-1, x.shape[-1]) if layout == "slots" else x


def tile_reader(
    x: Array, plan: RoutingPlan, layout: str, padding: int, dtype: jnp.dtype
) -> TileReader:
    """Reads tiles of grouped rows straight from an array in any layout.

    Args:
        x: rows in `layout`.
        plan: the routing plan.
        layout: "tokens", "slots" or "grouped".
        padding: the largest tile height that will be asked for.
        dtype: of the tiles.
    """
    rows = flatten_rows(x, layout)
    index = _pad_rows(row_index(plan, layout), padding)

    def read(start: Array, height: int, count: Array) -> Array:
        picked = jax.lax.dynamic_slice_in_dim(index, start, height)
        tile = rows.at[picked].get(mode="promise_in_bounds")
        return _keep(tile, count).astype(dtype)

    return read


def grouped_reader(x: Array, dtype: jnp.dtype) -> TileReader:
    """Reads tiles of an array that is grouped and padded already, [T*K + padding, ...]."""

    def read(start: Array, height: int, count: Array) -> Array:
        return _keep(jax.lax.dynamic_slice_in_dim(x, start, height), count).astype(dtype)

    return read


def gates_by_row(gates: Array, plan: RoutingPlan, dtype: jnp.dtype) -> Array:
    """[T, K] gates in grouped order, [T*K, 1]."""
    return gates.reshape(-1, 1)[plan.order].astype(dtype)


def _routed_slots(grouped: Array, plan: RoutingPlan) -> Array:
    """The rows of `grouped` [>= T*K, F] by slot, [T, K, F]; zero where a slot has no expert."""
    shape = (plan.num_tokens, plan.experts_per_token)
    picked = grouped.at[plan.inverse.reshape(shape)].get(mode="promise_in_bounds")
    return jnp.where(plan.slot_is_routed.reshape(shape)[..., None], picked, 0)


def ungroup(grouped: Array, plan: RoutingPlan, layout: str, gates: Array | None = None) -> Array:
    """Brings padded grouped rows [>= T*K, F] to a layout.

    Args:
        grouped: the rows; those without an expert may hold anything.
        plan: the routing plan.
        layout: "grouped" gives [T*K, F], "slots" [T, K, F], "tokens" the sum over K [T, F].
        gates: [T, K], weights of the sum for "tokens"; ones if None.
    """
    if layout == "grouped":
        return _keep(grouped[: plan.num_slots], plan.group_offsets[-1])
    if layout == "slots":
        return _routed_slots(grouped, plan)
    shape = (plan.num_tokens, plan.experts_per_token)
    index, routed = plan.inverse.reshape(shape), plan.slot_is_routed.reshape(shape)
    total = jnp.zeros((plan.num_tokens, grouped.shape[-1]), grouped.dtype)
    for k in range(plan.experts_per_token):
        picked = grouped.at[index[:, k]].get(mode="promise_in_bounds")
        if gates is not None:
            picked = picked * gates[:, k, None].astype(grouped.dtype)
        total += jnp.where(routed[:, k, None], picked, 0)
    return total
