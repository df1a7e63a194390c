"""All-to-all of only the rows that are routed, between the devices of one mesh axis.

Runs inside `jax.shard_map`. Each device holds rows sorted by the device they go to; what arrives is
sorted by the device it comes from. On TPUs and GPUs this is `jax.lax.ragged_all_to_all`; where XLA
has none (CPU), a twin gathers all rows and takes the same ones.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["sizes"], meta_fields=["axis", "capacity"]
)
@dataclasses.dataclass(frozen=True)
class Exchange:
    """Numbers of rows that go from each device of an axis to each other one.

    Attributes:
      sizes: rows from device (first index) to device (second), the same on all devices; what does
        not fit the receiver's buffer is cut off already.
      axis: name of the mesh axis.
      capacity: rows of the buffer in which a device receives.
    """

    sizes: Int[Array, "N N"]
    axis: str
    capacity: int

    @classmethod
    def plan(cls, wanted: Int[Array, "N"], axis: str, capacity: int) -> tuple[Exchange, Array]:
        """Agrees on an exchange.

        Args:
          wanted: rows that this device wants to send to each device.
          axis: name of the mesh axis.
          capacity: rows that a device can receive.

        Returns:
          The exchange, and the number of rows on all devices that find no room.
        """
        sizes = jax.lax.all_gather(wanted, axis)
        before = jnp.cumsum(sizes, axis=0) - sizes
        granted = jnp.clip(capacity - before, 0, sizes)
        return cls(granted, axis, capacity), (sizes - granted).sum()

    def send(self, rows: Float[Array, "R ..."], offsets: Int[Array, "N"]) -> Float[Array, "C ..."]:
        """Sends rows; the runs to device d start at `offsets[d]`. Differentiable in `rows`.

        Returns:
          What arrives here: a run from each device, in the order of devices; zeros after the last.
        """
        return _send(rows, self, offsets, rows.shape[0])

    def send_back(
        self, rows: Float[Array, "C ..."], offsets: Int[Array, "N"], count: int
    ) -> Float[Array, "R ..."]:
        """Returns rows to where they came from: the transpose of `send`.

        Args:
          rows: in the order in which `send` delivered them.
          offsets: as in `send`.
          count: R, the rows that each device sent from; those that were never sent come back as
            zeros.
        """
        return _send_back(rows, self, offsets, count)

    @property
    def received(self) -> Int[Array, "N"]:
        """Rows that come from each device to this one."""
        return self.sizes[:, jax.lax.axis_index(self.axis)]


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _send(rows: Array, exchange: Exchange, offsets: Array, count: int) -> Array:
    del count
    here = jax.lax.axis_index(exchange.axis)
    arriving = exchange.received
    before = jnp.cumsum(exchange.sizes, axis=0) - exchange.sizes
    return _ragged(
        rows,
        exchange.axis,
        exchange.capacity,
        input_offsets=offsets,
        send_sizes=exchange.sizes[here],
        output_offsets=before[here],
        receive_sizes=arriving,
    )


def _send_forward(
    rows: Array, exchange: Exchange, offsets: Array, count: int
) -> tuple[Array, tuple]:
    return _send(rows, exchange, offsets, count), (exchange, offsets)


def _send_backward(count: int, residuals: tuple, cotangent: Array) -> tuple[Array, None, None]:
    exchange, offsets = residuals
    return _send_back(cotangent, exchange, offsets, count), None, None


_send.defvjp(_send_forward, _send_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _send_back(rows: Array, exchange: Exchange, offsets: Array, count: int) -> Array:
    here = jax.lax.axis_index(exchange.axis)
    arrived = exchange.received
    every_offset = jax.lax.all_gather(offsets, exchange.axis)
    return _ragged(
        rows,
        exchange.axis,
        count,
        input_offsets=jnp.cumsum(arrived) - arrived,
        send_sizes=arrived,
        output_offsets=every_offset[:, here],
        receive_sizes=exchange.sizes[here],
    )


def _send_back_forward(
    rows: Array, exchange: Exchange, offsets: Array, count: int
) -> tuple[Array, tuple]:
    return _send_back(rows, exchange, offsets, count), (exchange, offsets)


def _send_back_backward(count: int, residuals: tuple, cotangent: Array) -> tuple[Array, None, None]:
    exchange, offsets = residuals
    return _send(cotangent, exchange, offsets, count), None, None


_send_back.defvjp(_send_back_forward, _send_back_backward)


def _ragged(
    rows: Array,
    axis: str,
    capacity: int,
    *,
    input_offsets: Array,
    send_sizes: Array,
    output_offsets: Array,
    receive_sizes: Array,
) -> Array:
    """One ragged all-to-all into a buffer of zeros.

    Rows to device d land at `output_offsets[d]` there.
    """
    output = jnp.zeros((capacity, *rows.shape[1:]), rows.dtype)

    def native(rows: Array, output: Array, *where: Array) -> Array:
        return jax.lax.ragged_all_to_all(rows, output, *where, axis_name=axis)

    def twin(rows: Array, output: Array, *where: Array) -> Array:
        return _twin(rows, output, *where, axis=axis)

    where = (input_offsets, send_sizes, output_offsets, receive_sizes)
    return jax.lax.platform_dependent(rows, output, *where, cpu=twin, default=native)


def _twin(
    rows: Array,
    output: Array,
    input_offsets: Array,
    send_sizes: Array,
    output_offsets: Array,
    receive_sizes: Array,
    *,
    axis: str,
) -> Array:
    """The same by a gather of all rows, for platforms without the collective."""
    del receive_sizes  # what the senders say decides
    here = jax.lax.axis_index(axis)
    every_row = jax.lax.all_gather(rows, axis)
    starts, sizes, targets = (
        jax.lax.all_gather(x, axis)[:, here] for x in (input_offsets, send_sizes, output_offsets)
    )
    place = jnp.arange(output.shape[0])[:, None]
    hit: Bool[Array, "C N"] = (place >= targets) & (place < targets + sizes)
    sender = jnp.argmax(hit, axis=1)
    row = starts[sender] + place[:, 0] - targets[sender]
    taken = every_row[sender, jnp.clip(row, 0, rows.shape[0] - 1)]
    mask = hit.any(1).reshape(-1, *(1,) * (output.ndim - 1))
    return jnp.where(mask, taken, output)
