"""Expert parallelism by gathering tokens: simple, and indifferent to how tokens are routed.

Each device sees the tokens of all devices of the expert axis, runs its own experts on those that
chose them, and the partial sums are reduced and scattered back. Per token of width D an all-gather
and a reduce-scatter, whatever K is; for the slots of attention experts, K of them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pallas_kernels.grouped_matmul import (
    RoutingPlan,
    grouped_feed_forward,
    grouped_matmul,
    routing_plan,
)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class GatheredPlan:
    """A routing decision of all devices of the expert axis, as one device needs it.

    Attributes:
      plan: of the gathered tokens, over this device's experts.
      gates: of the gathered tokens.
      dropped: always 0.
    """

    plan: RoutingPlan
    gates: Float[Array, "T K"]
    dropped: Int[Array, "1"]


@dataclasses.dataclass(frozen=True)
class GatheredExperts:
    """Computation on one device, inside `jax.shard_map`: t tokens of its own, T gathered ones.

    Attributes:
      local: experts on each device.
      implementation: of the kernels.
    """

    local: int
    implementation: str | None

    def plan(self, indices: Int[Array, "t K"], gates: Float[Array, "t K"]) -> GatheredPlan:
        """Gathers the routing decision, and sorts what concerns this device."""
        everyone = _gather(indices) - jax.lax.axis_index("expert") * self.local
        mine = (everyone >= 0) & (everyone < self.local)
        plan = routing_plan(jnp.where(mine, everyone, -1), self.local)
        return GatheredPlan(plan, _gather(gates), jnp.zeros(1, jnp.int32))

    def map(
        self, plan: GatheredPlan, x: Float[Array, "t D"], weights: Float[Array, "e D A"]
    ) -> Float[Array, "t K A"]:
        """As in `Dispatch`."""
        slots = grouped_matmul(
            _gather(x),
            weights,
            plan.plan,
            input_layout="tokens",
            output_layout="slots",
            implementation=self.implementation,
        )
        return _scatter(slots)

    def reduce(
        self, plan: GatheredPlan, slots: Float[Array, "t K A"], weights: Float[Array, "e A D"]
    ) -> Float[Array, "t D"]:
        """As in `Dispatch`."""
        y = grouped_matmul(
            _gather(slots),
            weights,
            plan.plan,
            input_layout="slots",
            output_layout="tokens",
            gates=plan.gates,
            implementation=self.implementation,
        )
        return _scatter(y)

    def feed_forward(
        self,
        plan: GatheredPlan,
        x: Float[Array, "t D"],
        up: Float[Array, "e D F"],
        down: Float[Array, "e F D"],
        gate: Float[Array, "e D F"] | None,
        activation: Callable[[jax.Array], jax.Array],
    ) -> Float[Array, "t D"]:
        """As in `Dispatch`."""
        y = grouped_feed_forward(
            _gather(x),
            up,
            down,
            plan.plan,
            plan.gates,
            gate_weights=gate,
            activation=activation,
            implementation=self.implementation,
        )
        return _scatter(y)


def _gather(x: Array) -> Array:
    return jax.lax.all_gather(x, "expert", axis=0, tiled=True)


def _scatter(x: Array) -> Array:
    return jax.lax.psum_scatter(x, "expert", scatter_dimension=0, tiled=True)
