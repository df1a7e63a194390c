"""Slots of tokens: sums over them, and what all of a token's slots share.

A token has K slots, one for each of its experts. A TPU keeps that axis in the rows of registers:
summing along it fills K rows of eight, summing slot by slot all. By the schedules that are compiled
for v5p, `[48, 1024, 2, 1024]` in float32 takes 2.8 ms along the axis and 0.7 ms slot by slot.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def over_slots(values: Float[Array, "B S O"], count: int) -> Float[Array, "B S K O"]:
    """Returns the values of each token for each of its `count` slots."""
    return jnp.broadcast_to(values[:, :, None], (*values.shape[:2], count, values.shape[-1]))


def _over_slots_forward(values: Array, count: int) -> tuple[Array, None]:
    return over_slots(values, count), None


def _over_slots_backward(count: int, _: None, cotangent: Array) -> tuple[Array]:
    return (functools.reduce(jnp.add, (cotangent[:, :, slot] for slot in range(count))),)


over_slots.defvjp(_over_slots_forward, _over_slots_backward)


@jax.custom_vjp
def weighted_sum(
    slots: Float[Array, "B S K O"], gates: Float[Array, "B S K"]
) -> Float[Array, "B S O"]:
    """Sums each token's slots, weighted, in float32."""
    weighted = (
        slots[:, :, slot].astype(jnp.float32) * gates[:, :, slot, None]
        for slot in range(slots.shape[2])
    )
    return functools.reduce(jnp.add, weighted)


def _weighted_sum_forward(slots: Array, gates: Array) -> tuple[Array, tuple[Array, Array]]:
    return weighted_sum(slots, gates), (slots, gates)


def _weighted_sum_backward(kept: tuple[Array, Array], cotangent: Array) -> tuple[Any, Any]:
    slots, gates = kept
    of_slots = (cotangent[:, :, None] * gates[..., None]).astype(slots.dtype)
    of_gates = [
        (slots[:, :, slot].astype(jnp.float32) * cotangent).sum(-1)
        for slot in range(slots.shape[2])
    ]
    return of_slots, jnp.stack(of_gates, axis=-1).astype(gates.dtype)


weighted_sum.defvjp(_weighted_sum_forward, _weighted_sum_backward)
