"""Routing plans: which rows each expert multiplies, computed once a routing decision."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax import Array
from jax.ad_checkpoint import checkpoint_name

ROUTING_PLAN = "routing_plan"
"""`jax.checkpoint_policies.save_only_these_names(ROUTING_PLAN)` keeps the arrays of plans, 8 bytes
a slot that was sorted, and so spares the backward pass to sort again."""


# Experts, slots and rows are numbered in int32.
_LARGEST = 2**31 - 1


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["order", "inverse", "group_sizes", "group_offsets"],
    meta_fields=["experts_per_token"],
)
@dataclasses.dataclass(frozen=True)
class RoutingPlan:
    """The slots of a routing decision, sorted by expert.

    A *slot* is one (token, choice) pair: slot `t * K + k` is choice `k` of token `t`. The *grouped*
    order holds the slots of expert 0 first, then those of expert 1, and so on, each expert's in
    ascending slot order. Slots that name no expert (a negative index, or `E` and above) come last
    and belong to no group.

    Attributes:
        order: int32 [T*K]; the slot at each grouped row.
        inverse: int32 [T*K]; the grouped row of each slot (the inverse permutation of `order`).
        group_sizes: int32 [E]; the load of each expert.
        group_offsets: int32 [E+1]; expert `e` owns the grouped rows
            `group_offsets[e]:group_offsets[e + 1]`; rows from `group_offsets[E]` on have no expert.
        experts_per_token: K, static.
    """

    order: Array
    inverse: Array
    group_sizes: Array
    group_offsets: Array
    experts_per_token: int

    @property
    def num_experts(self) -> int:
        """E."""
        return self.group_sizes.shape[-1]

    @property
    def num_slots(self) -> int:
        """T * K."""
        return self.order.shape[-1]

    @property
    def num_tokens(self) -> int:
        """T."""
        return self.num_slots // self.experts_per_token

    @property
    def token_of_row(self) -> Array:
        """int32 [T*K]; the token at each grouped row."""
        return self.order // self.experts_per_token

    @property
    def expert_of_row(self) -> Array:
        """int32 [T*K]; the expert of each grouped row, E for rows without one."""
        rows = jnp.arange(self.num_slots, dtype=jnp.int32)
        return jnp.searchsorted(self.group_offsets[1:], rows, side="right").astype(jnp.int32)

    @property
    def slot_is_routed(self) -> Array:
        """Boolean [T*K]; whether the slot has an expert."""
        return self.inverse < self.group_offsets[..., -1:]


def routing_plan(expert_indices: Array, num_experts: int) -> RoutingPlan:
    """Sorts the slots of a routing decision by expert.

    Args:
        expert_indices: integer [T, K]; the experts of each token. An index outside
            `[0, num_experts)` means "no expert": the slot contributes zero. An expert may be chosen
            more than once by a token; each choice counts.
        num_experts: E, from 1 to below 2**31.

    Returns:
        The plan, a pytree of integer arrays; nothing in it carries a gradient.

    Raises:
        ValueError: `expert_indices` is not an integer [T, K] array with K >= 1 and fewer than 2**31
            slots, or `num_experts` is out of range.
    """
    if num_experts < 1:
        raise ValueError(f"num_experts must be at least 1, got {num_experts}")
    if num_experts > _LARGEST:
        raise ValueError(f"num_experts must be below 2**31, got {num_experts}")
    if expert_indices.ndim != 2 or expert_indices.shape[1] < 1:
        raise ValueError(
            f"expert_indices must have shape [T, K] with K >= 1, got {expert_indices.shape}"
        )
    if expert_indices.size > _LARGEST:
        raise ValueError(
            f"expert_indices must have fewer than 2**31 slots, got {expert_indices.shape}"
        )
    if not jnp.issubdtype(expert_indices.dtype, jnp.integer):
        raise ValueError(f"expert_indices must be integers, got {expert_indices.dtype}")
    # First choices of all tokens, then second ones: a TPU pads [T, K] to 128 choices.
    flat = expert_indices.T.reshape(-1)
    if flat.dtype.itemsize < 4:  # so that E fits the type it is compared in
        flat = flat.astype(jnp.int32)
    named = (flat >= 0) & (flat < num_experts)
    experts = jnp.where(named, flat, num_experts).astype(jnp.int32)
    tokens, choices = expert_indices.shape
    token, choice = jnp.arange(tokens, dtype=jnp.int32), jnp.arange(choices, dtype=jnp.int32)
    slots = (token * choices + choice[:, None]).reshape(-1)
    sorted_experts, order = _sorted(experts, slots, num_experts)
    inverse = jax.lax.platform_dependent(order, tpu=_inverse_by_sorting, default=_inverse)
    group_offsets = jnp.searchsorted(
        sorted_experts, jnp.arange(num_experts + 1, dtype=jnp.int32), side="left"
    ).astype(jnp.int32)
    plan = RoutingPlan(
        order=order,
        inverse=inverse,
        group_sizes=jnp.diff(group_offsets),
        group_offsets=group_offsets,
        experts_per_token=choices,
    )
    kept: RoutingPlan = checkpoint_name(plan, ROUTING_PLAN)
    return kept


def _sorted(experts: Array, slots: Array, num_experts: int) -> tuple[Array, Array]:
    """Experts of slots in ascending order, int32 [N], and the slot of each; ties by slot."""
    bits = (experts.size - 1).bit_length()
    if bits + num_experts.bit_length() > 31:
        sorted_experts, order = jax.lax.sort((experts, slots), num_keys=2, is_stable=False)
        return sorted_experts, order
    # One number for both: half the work, and no two are equal.
    both = jax.lax.sort((experts << bits) | slots, is_stable=False)
    return both >> bits, both & ((1 << bits) - 1)


def _inverse(order: Array) -> Array:
    """The place of each number in a permutation, int32 [N]."""
    places = jnp.arange(order.size, dtype=jnp.int32)
    return jnp.zeros_like(order).at[order].set(places, unique_indices=True)


def _inverse_by_sorting(order: Array) -> Array:
    """The same. A TPU scatters one number at a time, and sorts 100,000 in a sixth of that time."""
    places = jnp.arange(order.size, dtype=jnp.int32)
    return jax.lax.sort((order, places), num_keys=1, is_stable=False)[1]
