"""The work list of a kernel: which row tiles hold rows of which expert, in which order."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax import Array

from pallas_kernels.grouped_matmul.plan import RoutingPlan


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["expert", "tile", "offsets", "count", "partial"],
    meta_fields=["height", "tiles", "cores"],
)
@dataclasses.dataclass(frozen=True)
class WorkList:
    """WorkList of tiles of `height` grouped rows, in ascending order of experts, then of rows.

    A tile that several experts share is an item for each, one item after the other, so an
    output block that stays in VMEM collects them all.

    With two cores, the list is cut in two where a tile ends, as near to the middle as that allows:
    no tile belongs to both. The expert at the cut may: see `partial`.

    Attributes:
        expert: int32 [cores * V]; the expert of each item, E for rows that have none.
        tile: int32 [cores * V]; its tile.
        offsets: int32 [E+2]; expert `e` owns the grouped rows `offsets[e]:offsets[e + 1]`.
        count: int32 [1 + cores]; the steps that every core makes, at least 1, then the items of
            each. Steps beyond a core's items repeat its last one and own no rows. A core without
            items is given expert E and a tile of its own.
        partial: int32 [cores]; with two cores, the last expert of the first one, and the same again
            if the second one goes on with it, or else -1; with one core, -1.
        height: rows of a tile.
        tiles: tiles that hold all rows.
        cores: 1 or 2.
    """

    expert: Array
    tile: Array
    offsets: Array
    count: Array
    partial: Array
    height: int
    tiles: int
    cores: int

    @property
    def scalars(self) -> tuple[Array, Array, Array, Array, Array]:
        """The arrays that the kernel keeps in scalar memory."""
        return self.expert, self.tile, self.offsets, self.count, self.partial


def work_list(
    plan: RoutingPlan, height: int, *, every_row: bool, every_expert: bool, cores: int = 1
) -> WorkList:
    """The work list of a plan.

    Args:
        plan: the routing plan.
        height: rows of a tile.
        every_row: also list the rows that have no expert, as expert E.
        every_expert: also list experts without rows, once each, on any tile.
        cores: that share the work, 1 or 2; if all rows fit one tile, there is but one.
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
    # At least one item, be it of no rows: a grid without steps would leave its copies unmatched.
    needed = needed.at[0].max(jnp.where(jnp.sum(needed) == 0, 1, 0))
    # A tile and its successor meet at most once for each expert, and each expert adds at most one.
    limit = tiles + experts + 1
    before = jnp.cumsum(needed) - needed
    numbers = jnp.arange(limit, dtype=jnp.int32)
    expert = jnp.searchsorted(before + needed, numbers, side="right").astype(jnp.int32)
    expert = jnp.minimum(expert, experts)
    tile = jnp.clip(first[expert] + numbers - before[expert], 0, tiles - 1).astype(jnp.int32)
    total = jnp.sum(needed, dtype=jnp.int32)
    if cores == 1 or tiles == 1:
        count, nobody = jnp.stack([total, total]), jnp.full((1,), -1, jnp.int32)
        return WorkList(expert, tile, offsets, count, nobody, height, tiles, 1)
    return WorkList(*_halves(expert, tile, offsets, total, experts, tiles), height, tiles, 2)


def _halves(
    expert: Array, tile: Array, offsets: Array, total: Array, experts: int, tiles: int
) -> tuple[Array, Array, Array, Array, Array]:
    """Cuts a list of `total` items in two; the arrays of `WorkList`."""
    numbers = jnp.arange(expert.shape[0], dtype=jnp.int32)
    opens_tile = (numbers > 0) & (numbers < total) & (tile != jnp.roll(tile, 1))
    from_middle = jnp.where(opens_tile, jnp.abs(2 * numbers - total), 2 * expert.shape[0])
    cut = jnp.where(jnp.any(opens_tile), jnp.argmin(from_middle), total).astype(jnp.int32)
    first, second = jnp.minimum(numbers, cut - 1), jnp.minimum(cut + numbers, total - 1)
    idle = cut == total
    # Everything is on one tile: the second core has any other one.
    halves = (
        jnp.concatenate([expert[first], jnp.where(idle, experts, expert[second])]),
        jnp.concatenate([tile[first], jnp.where(idle, (tile[0] + 1) % tiles, tile[second])]),
    )
    counts = jnp.stack([jnp.maximum(cut, total - cut), cut, total - cut])
    last = jnp.minimum(expert[cut - 1], experts - 1)
    goes_on = ~idle & (expert[jnp.minimum(cut, total - 1)] == last)
    return *halves, offsets, counts, jnp.stack([last, jnp.where(goes_on, last, -1)])
