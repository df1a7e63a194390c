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
    with_left: bool = False,
) -> tuple[Float[Array, "B S H W"], Float[Array, "B S H"] | None]:
    """Runs attention on the mesh in force, or as it is without one.

    Args:
      attend: returns the output, or for a ring the pair of output and remainder `[B, S, H]`; of
        softmax attention with `with_left` output and log-sum-exp.
      query: of all positions of this call.
      segment_ids: of the queries.
      keys: of all positions.
      offset: index among the keys at which query 0 stands.
      ring: whether blocks of keys compose by remainders.
      with_left: whether remainder or log-sum-exp are asked for.

    Returns:
      The output, and remainder or log-sum-exp, float32, if asked for.

    Raises:
      InputError: heads that do not divide over the tensor axis; fewer or more keys than queries
        where the positions are divided.
    """

    def pair(result: Any) -> tuple[Array, Array | None]:
        output, left = result if ring or with_left else (result, None)
        return output, left if with_left else None

    mesh = current_mesh()
    if mesh is None:
        return pair(attend(query, segment_ids, keys, offset))
    divided, tensor = mesh.shape["sequence"] > 1, mesh.shape["tensor"]
    if keys.key.shape[2] % tensor:
        raise InputError(
            f"{keys.key.shape[2]} heads of keys and values do not divide by mesh.tensor {tensor}"
        )
    if divided and keys.key.shape[1] != query.shape[1]:
        raise InputError("mesh.sequence divides whole sequences only: decode with mesh.sequence 1")

    def local(
        query: Array, segment_ids: Array | None, keys: Keys, offset: Array
    ) -> tuple[Array, Array | None]:
        if not divided:
            return pair(attend(query, segment_ids, keys, offset))
        if ring:
            return pair(_ring(attend, query, segment_ids, keys))
        everything = jax.tree.map(
            lambda x: jax.lax.all_gather(x, "sequence", axis=1, tiled=True), keys
        )
        here = jax.lax.axis_index("sequence") * query.shape[1]
        return pair(attend(query, segment_ids, everything, here))

    heads = activation_spec("batch", "sequence", "heads", "head_width")
    row = activation_spec("batch", "sequence")
    key_specs = jax.tree.map(lambda x: heads if x.ndim == 4 else row, keys)
    return jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(heads, row, key_specs, jax.sharding.PartitionSpec()),
        out_specs=(heads, activation_spec("batch", "sequence", "heads")),
        # Kernels do not declare over which axes their results vary.
        check_vma=False,
    )(query, segment_ids, keys, jnp.asarray(offset, jnp.int32))


def _ring(
    attend: Callable[..., Any], query: Array, segment_ids: Array | None, keys: Keys
) -> tuple[Float[Array, "B S H W"], Float[Array, "B S H"]]:
    """Attention of this device's queries over its own keys, then over those of each before it.

    Returns output and remainder.
    """
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

    (total, left, _), _ = jax.lax.scan(
        step, (total, remainder, keys), jnp.arange(1, devices, dtype=jnp.int32)
    )
    return total.astype(output.dtype), left
