"""Expert parallelism by all-to-all: only the routed rows travel, to the device of their expert.

Each token is sent once for each of its K choices, and each result returns alone; the weighted sum
over choices is taken where the token lives. Buffers are static. Without a capacity they hold all
that could ever arrive, so that nothing is dropped; with one, what does not fit is dropped and
counted.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from modbrick.parallel.exchange import Exchange
from pallas_kernels.grouped_matmul import (
    RoutingPlan,
    grouped_feed_forward,
    grouped_matmul,
    routing_plan,
)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ExchangedPlan:
    """A routing decision as one device needs it: what it sends, and what it does with what arrives.

    Attributes:
      order: slots of this device's tokens, sorted by expert.
      inverse: the place of each slot in that order.
      offsets: where the run to each device starts in that order.
      exchange: how many rows go where.
      plan: of the rows that arrive, over this device's experts, one choice a row.
      gates: of this device's tokens.
      dropped: choices that found no room, summed over the expert axis.
    """

    order: Int[Array, "N"]
    inverse: Int[Array, "N"]
    offsets: Int[Array, "P"]
    exchange: Exchange
    plan: RoutingPlan
    gates: Float[Array, "t K"]
    dropped: Int[Array, "1"]


@dataclasses.dataclass(frozen=True)
class ExchangedExperts:
    """Computation on one device, inside `jax.shard_map`: t tokens of its own, C rows that arrive.

    Attributes:
      local: experts on each device.
      implementation: of the kernels.
      capacity: rows that a device can receive, in units of what it sends (t K); None: all that all
        devices of the axis could send.
    """

    local: int
    implementation: str | None
    capacity: float | None

    def plan(self, indices: Int[Array, "t K"], gates: Float[Array, "t K"]) -> ExchangedPlan:
        """Sorts the device's choices by expert and agrees on who sends how much."""
        devices = jax.lax.axis_size("expert")
        experts = devices * self.local
        sent = routing_plan(indices, experts)
        rows = sent.num_slots * devices
        if self.capacity is not None:
            rows = min(rows, math.ceil(self.capacity * sent.num_slots))
        wanted = sent.group_sizes.reshape(devices, self.local)
        exchange, dropped = Exchange.plan(wanted.sum(1), "expert", rows)
        # Every sender's rows arrive sorted by expert: the run lengths give each row's expert.
        runs = jax.lax.all_gather(wanted, "expert")[:, jax.lax.axis_index("expert")]
        before = jnp.cumsum(runs, axis=1) - runs
        runs = jnp.clip(exchange.received[:, None] - before, 0, runs)  # what was cut off
        ends = jnp.cumsum(runs.reshape(-1))
        run = jnp.searchsorted(ends, jnp.arange(rows), side="right")
        local_expert = jnp.where(run < ends.size, run % self.local, -1).astype(jnp.int32)
        return ExchangedPlan(
            order=sent.order,
            inverse=sent.inverse,
            offsets=sent.group_offsets[: experts : self.local],
            exchange=exchange,
            plan=routing_plan(local_expert[:, None], self.local),
            gates=gates,
            dropped=dropped[None].astype(jnp.int32),
        )

    def map(
        self, plan: ExchangedPlan, x: Float[Array, "t D"], weights: Float[Array, "e D A"]
    ) -> Float[Array, "t K A"]:
        """As in `Dispatch`."""
        k = plan.gates.shape[1]
        return self._matmul(plan, x[plan.order // k], weights)

    def reduce(
        self, plan: ExchangedPlan, slots: Float[Array, "t K A"], weights: Float[Array, "e A D"]
    ) -> Float[Array, "t D"]:
        """As in `Dispatch`."""
        rows = slots.reshape(-1, slots.shape[-1])[plan.order]
        return _combine(plan, self._matmul(plan, rows, weights))

    def feed_forward(
        self,
        plan: ExchangedPlan,
        x: Float[Array, "t D"],
        up: Float[Array, "e D F"],
        down: Float[Array, "e F D"],
        gate: Float[Array, "e D F"] | None,
        activation: Callable[[jax.Array], jax.Array],
    ) -> Float[Array, "t D"]:
        """As in `Dispatch`."""
        k = plan.gates.shape[1]
        arrived = plan.exchange.send(x[plan.order // k], plan.offsets)
        y = grouped_feed_forward(
            arrived,
            up,
            down,
            plan.plan,
            jnp.ones((arrived.shape[0], 1), jnp.float32),
            gate_weights=gate,
            activation=activation,
            implementation=self.implementation,
        )
        return _combine(plan, self._return(plan, y))

    def _matmul(
        self, plan: ExchangedPlan, rows: Float[Array, "N I"], weights: Float[Array, "e I O"]
    ) -> Float[Array, "t K O"]:
        arrived = plan.exchange.send(rows, plan.offsets)
        y = grouped_matmul(
            arrived,
            weights,
            plan.plan,
            input_layout="tokens",
            output_layout="slots",
            implementation=self.implementation,
        )
        return self._return(plan, y[:, 0])

    def _return(self, plan: ExchangedPlan, rows: Float[Array, "C O"]) -> Float[Array, "t K O"]:
        back = plan.exchange.send_back(rows, plan.offsets, plan.order.shape[0])
        return back[plan.inverse].reshape(*plan.gates.shape, -1)


def _combine(plan: ExchangedPlan, slots: Float[Array, "t K D"]) -> Float[Array, "t D"]:
    weighted = slots.astype(jnp.float32) * plan.gates[..., None].astype(jnp.float32)
    return weighted.sum(1).astype(slots.dtype)
