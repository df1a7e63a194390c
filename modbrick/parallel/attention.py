"""Attention over a mesh: rows and heads are independent, positions are not.

Where the sequence axis divides the positions, keys and values travel. Stick-breaking attention
passes them around a ring: what a query still has of its stick after the nearer blocks weighs what
the next block gives it,

    output = o_0 + r_0 (o_1 + r_1 (o_2 + ...)),      remainder = r_0 r_1 r_2 ...,

with o_t and r_t output and remainder of the query's attention over the t-th block back alone. That
is the definition with its product cut at block borders (arXiv 2410.17980, equation 2), so the ring
is exact, and its gradient follows from those of outputs and remainders. Softmax attention gathers
keys and values.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from modbrick.errors import InputError
from modbrick.parallel.mesh import current_mesh
from modbrick.parallel.rules import activation_spec


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Keys:
    """Keys and values, and the arrays that say which of them a query sees.

    Attributes:
      key, value: the keys and values.
      segment_ids: the documents that they belong to; None: one document.
      mask: which of them are no padding; None: all.
    """

    key: Float[Array, "B C G W"]
    value: Float[Array, "B C G W"]
    segment_ids: Int[Array, "B C"] | None
    mask: Bool[Array, "B C"] | None


Offset = Int[Array, ""] | int

# Of the ring: output so far, remainder so far, and the keys in hand.
_Carry = tuple[Array, Array, Keys]


class Attend(Protocol):
    """Attention on one device: queries at `offset` among the keys."""

    def __call__(
        self,
        query: Float[Array, "B S H W"],
        segment_ids: Int[Array, "B S"] | None,
        keys: Keys,
        offset: Offset,
    ) -> Any:
        """Returns what the keys give to the queries."""
        ...


def attend_over_mesh(
    attend: Attend,
    query: Float[Array, "B S H W"],
    segment_ids: Int[Array, "B S"] | None,
    keys: Keys,
    offset: Offset,
    *,
    ring: bool,
) -> Float[Array, "B S H W"]:
    """Runs attention on the mesh in force, or as it is without one.

    Args:
      attend: returns the output, or for a ring the pair of output and remainder `[B, S, H]`.
      query: of all positions of this call.
      segment_ids: of the queries.
      keys: of all positions.
      offset: index among the keys at which query 0 stands.
      ring: whether blocks of keys compose by remainders.

    Raises:
      InputError: heads that do not divide over the tensor axis; fewer or more keys than queries
        where the positions are divided.
    """
    mesh = current_mesh()
    if mesh is None:
        result = attend(query, segment_ids, keys, offset)
        return result[0] if ring else result
    divided, tensor = mesh.shape["sequence"] > 1, mesh.shape["tensor"]
    if keys.key.shape[2] % tensor:
        raise InputError(
            f"{keys.key.shape[2]} heads of keys and values do not divide by mesh.tensor {tensor}"
        )
    if divided and keys.key.shape[1] != query.shape[1]:
        raise InputError("mesh.sequence divides whole sequences only: decode with mesh.sequence 1")

    def local(query: Array, segment_ids: Array | None, keys: Keys, offset: Array) -> Array:
        if not divided:
            result = attend(query, segment_ids, keys, offset)
            return result[0] if ring else result
        if ring:
            return _ring(attend, query, segment_ids, keys)
        everything = jax.tree.map(
            lambda x: jax.lax.all_gather(x, "sequence", axis=1, tiled=True), keys
        )
        here = jax.lax.axis_index("sequence") * query.shape[1]
        return attend(query, segment_ids, everything, here)

    heads = activation_spec("batch", "sequence", "heads", "head_width")
    row = activation_spec("batch", "sequence")
    key_specs = jax.tree.map(lambda x: heads if x.ndim == 4 else row, keys)
    return jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(heads, row, key_specs, jax.sharding.PartitionSpec()),
        out_specs=heads,
        # Kernels do not declare over which axes their results vary.
        check_vma=False,
    )(query, segment_ids, keys, jnp.asarray(offset, jnp.int32))


def _ring(
    attend: Callable[..., Any], query: Array, segment_ids: Array | None, keys: Keys
) -> Float[Array, "B S H W"]:
    """Attention of this device's queries over its own keys, then over those of each before it."""
    devices = jax.lax.axis_size("sequence")
    here = jax.lax.axis_index("sequence")
    length = query.shape[1]
    onwards = [(device, (device + 1) % devices) for device in range(devices)]

    output, remainder = attend(query, segment_ids, keys, 0)
    total = output.astype(jnp.promote_types(output.dtype, jnp.float32))

    # Each step is computed again in the backward pass, which so keeps keys and values only.
    @jax.checkpoint
    def step(
        carry: tuple[Array, Array, Keys], back: Array
    ) -> tuple[tuple[Array, Array, Keys], None]:
        total, left, keys = carry
        keys = jax.tree.map(lambda x: jax.lax.ppermute(x, "sequence", onwards), keys)

        def earlier() -> tuple[Array, Array]:
            output, remainder = attend(query, segment_ids, keys, back * length)
            return output.astype(total.dtype), remainder

        def later() -> tuple[Array, Array]:  # blocks that wrapped around lie ahead: not seen
            return jnp.zeros_like(total), jnp.ones_like(left)

        output, remainder = jax.lax.cond(back <= here, earlier, later)
        return (total + left[..., None] * output, left * remainder, keys), None

    (total, _, _), _ = jax.lax.scan(
        step, (total, remainder, keys), jnp.arange(1, devices, dtype=jnp.int32)
    )
    return total.astype(output.dtype)
