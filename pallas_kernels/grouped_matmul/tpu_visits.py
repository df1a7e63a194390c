"""The work list of a kernel: which row tile is visited for which expert, and in which order."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax import Array

from pallas_kernels.grouped_matmul.plan import RoutingPlan


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["expert", "tile", "offsets", "count"],
    meta_fields=["height", "tiles"],
)
@dataclasses.dataclass(frozen=True)
class Visits:
    """Visits of tiles of `height` grouped rows, in ascending order of experts, then of rows.

    A tile that several experts share is visited once for each, one visit after the other, so an
    output block that stays in VMEM collects them all.

    Attributes:
        expert: int32 [V]; the expert of each visit, E for rows that have none.
        tile: int32 [V]; its tile.
        offsets: int32 [E+2]; expert `e` owns the grouped rows `offsets[e]:offsets[e + 1]`.
        count: int32 [1]; how many of the V are to be made, at least 1.
        height: rows of a tile.
        tiles: tiles that hold all rows.
    """

    expert: Array
    tile: Array
    offsets: Array
    count: Array
    height: int
    tiles: int

    @property
    def scalars(self) -> tuple[Array, Array, Array, Array]:
        """What the kernel keeps in scalar memory."""
        return self.expert, self.tile, self.offsets, self.count


def visits(plan: RoutingPlan, height: int, *, every_row: bool, every_expert: bool) -> Visits:
    """The work list of a plan.

    Args:
        plan: the routing plan.
        height: rows of a tile.
        every_row: also visit the rows that have no expert, as expert E.
        every_expert: also visit experts without rows, once each, on any tile.
    """
    experts, tiles = plan.num_experts, -(-plan.num_slots // height)
    ends = jnp.full((1,), plan.num_slots, jnp.int32)
    offsets = jnp.concatenate([plan.group_offsets, ends])
    starts, stops = offsets[:-1], offsets[1:]
    first = starts // height
    needed = jnp.where(stops > starts, (stops - 1) // height - first + 1, 0)
    if every_expert:
        needed = needed.at[:experts].max(1)
    if not every_row:
        needed = needed.at[experts].set(0)
    # At least one visit, be it to nothing: a grid without steps would leave its copies unmatched.
    needed = needed.at[0].max(jnp.where(jnp.sum(needed) == 0, 1, 0))
    # A tile and its successor meet at most once for each expert, and each expert adds at most one.
    limit = tiles + experts + 1
    before = jnp.cumsum(needed) - needed
    numbers = jnp.arange(limit, dtype=jnp.int32)
    expert = jnp.searchsorted(before + needed, numbers, side="right").astype(jnp.int32)
    expert = jnp.minimum(expert, experts)
    tile = jnp.clip(first[expert] + numbers - before[expert], 0, tiles - 1).astype(jnp.int32)
    count = jnp.sum(needed, dtype=jnp.int32)[None]
    return Visits(expert, tile, offsets, count, height, tiles)
