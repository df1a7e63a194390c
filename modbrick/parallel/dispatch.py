"""Bringing tokens to experts and back, on one device or on a mesh.

A dispatch is made from one routing decision and serves every bank that the decision is for: the
query and output banks of attention, the matrices of feed-forward experts. All kinds have the same
methods and give the same results; which one is used follows from the mesh in force and from the
execution config.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import jax
from jaxtyping import Array, Float, Int

from modbrick.errors import InputError
from modbrick.execution import ExecutionConfig
from modbrick.parallel.exchanged_dispatch import ExchangedExperts
from modbrick.parallel.gathered_dispatch import GatheredExperts
from modbrick.parallel.mesh import current_mesh
from modbrick.parallel.sharded_dispatch import DeviceExperts, ShardedDispatch
from pallas_kernels.grouped_matmul import grouped_feed_forward, grouped_matmul, routing_plan

Activation = Callable[[jax.Array], jax.Array]


class Dispatch(Protocol):
    """Interface of a routed layer's dispatch; weights and tokens have one dtype."""

    @property
    def dropped(self) -> Int[Array, ""] | None:
        """Choices that found no room on their expert's device, over all devices; None: none can."""
        ...

    def map(
        self, x: Float[Array, "B S D"], weights: Float[Array, "E D A"]
    ) -> Float[Array, "B S K A"]:
        """Multiplies each token by the matrix of each of its experts."""
        ...

    def reduce(
        self, slots: Float[Array, "B S K A"], weights: Float[Array, "E A D"]
    ) -> Float[Array, "B S D"]:
        """The sum over slots of slot times its expert's matrix, weighted by the gates."""
        ...

    def feed_forward(
        self,
        x: Float[Array, "B S D"],
        up: Float[Array, "E D F"],
        down: Float[Array, "E F D"],
        gate: Float[Array, "E D F"] | None,
        activation: Activation,
    ) -> Float[Array, "B S D"]:
        """The sum over slots of the expert's feed-forward layer, weighted by the gates."""
        ...


class LocalDispatch:
    """Every token and every expert on one device."""

    dropped: Int[Array, ""] | None = None

    def __init__(
        self,
        indices: Int[Array, "B S K"],
        gates: Float[Array, "B S K"],
        num_experts: int,
        implementation: str | None,
    ):
        self._k = indices.shape[-1]
        self._gates = gates.reshape(-1, self._k)
        self.plan = routing_plan(indices.reshape(-1, self._k), num_experts)
        self._implementation = implementation

    def map(self, x: Array, weights: Array) -> Array:
        """As in `Dispatch`."""
        y = grouped_matmul(
            x.reshape(-1, x.shape[-1]),
            weights,
            self.plan,
            input_layout="tokens",
            output_layout="slots",
            implementation=self._implementation,
        )
        return y.reshape(*x.shape[:-1], self._k, -1)

    def reduce(self, slots: Array, weights: Array) -> Array:
        """As in `Dispatch`."""
        y = grouped_matmul(
            slots.reshape(-1, *slots.shape[-2:]),
            weights,
            self.plan,
            input_layout="slots",
            output_layout="tokens",
            gates=self._gates,
            implementation=self._implementation,
        )
        return y.reshape(*slots.shape[:-2], -1)

    def feed_forward(
        self, x: Array, up: Array, down: Array, gate: Array | None, activation: Activation
    ) -> Array:
        """As in `Dispatch`."""
        return grouped_feed_forward(
            x.reshape(-1, x.shape[-1]),
            up,
            down,
            self.plan,
            self._gates,
            gate_weights=gate,
            activation=activation,
            implementation=self._implementation,
        ).reshape(x.shape)


def make_dispatch(
    indices: Int[Array, "B S K"],
    gates: Float[Array, "B S K"],
    num_experts: int,
    execution: ExecutionConfig,
) -> Dispatch:
    """Returns the dispatch of a routing decision: local, or over the mesh in force.

    Args:
      indices: the experts of each token.
      gates: their weights.
      num_experts: E.
      execution: `expert_parallelism` picks the way over a mesh, `dispatch` the kernels.

    Raises:
      InputError: the experts do not divide over the mesh.
    """
    mesh = current_mesh()
    if mesh is None:
        return LocalDispatch(indices, gates, num_experts, execution.dispatch)
    devices = mesh.shape["expert"]
    if num_experts % devices:
        raise InputError(f"{num_experts} experts do not divide by mesh.expert {devices}")
    local = num_experts // devices
    experts: DeviceExperts = (
        GatheredExperts(local, execution.dispatch)
        if execution.expert_parallelism == "gather"
        else ExchangedExperts(local, execution.dispatch, execution.exchange_capacity)
    )
    return ShardedDispatch(indices, gates, mesh, experts)
