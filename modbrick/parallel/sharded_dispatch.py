"""A dispatch over a mesh: what each device does, wrapped so that layers see whole arrays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import jax
from jax.sharding import AbstractMesh, PartitionSpec
from jaxtyping import Array, Float, Int

from modbrick.parallel.mesh import AXES
from modbrick.parallel.rules import activation_spec, parameter_spec

# A device's own part of a plan, stacked over all devices along the leading axis.
_PER_DEVICE = PartitionSpec(AXES)
_INWARDS = ("expert", "width", "hidden")
_OUTWARDS = ("expert", "hidden", "width")


class DeviceExperts(Protocol):
    """Computation on one device, with its own tokens `[t, ...]` and its own experts."""

    def plan(self, indices: Array, gates: Array) -> Any:
        """Prepares a routing decision; a pytree whose leaves have a leading axis."""
        ...

    def map(self, plan: Any, x: Array, weights: Array) -> Array:
        """As in `Dispatch`."""
        ...

    def reduce(self, plan: Any, slots: Array, weights: Array) -> Array:
        """As in `Dispatch`."""
        ...

    def feed_forward(
        self,
        plan: Any,
        x: Array,
        up: Array,
        down: Array,
        gate: Array | None,
        activation: Callable[[jax.Array], jax.Array],
    ) -> Array:
        """As in `Dispatch`."""
        ...


class ShardedDispatch:
    """Tokens divided over batch and sequence axes, experts over the expert axis.

    Hidden units and heads are divided over the tensor axis, where partial sums are added up.
    Weights are made whole over fsdp for the time of their use.
    """

    def __init__(
        self,
        indices: Int[Array, "B S K"],
        gates: Float[Array, "B S K"],
        mesh: AbstractMesh,
        experts: DeviceExperts,
    ):
        self._mesh, self._experts = mesh, experts
        choices = activation_spec("batch", "sequence", "choice")

        def plan(indices: Array, gates: Array) -> Any:
            k = indices.shape[-1]
            return experts.plan(indices.reshape(-1, k), gates.reshape(-1, k))

        self._plan = self._run(plan, (choices, choices), _PER_DEVICE)(indices, gates)
        # The devices of the expert axis count the same dropped, those of the tensor axis too.
        copies = mesh.shape["expert"] * mesh.shape["tensor"]
        self.dropped: Int[Array, ""] | None = self._plan.dropped.sum() // copies

    def map(
        self, x: Float[Array, "B S D"], weights: Float[Array, "E D A"]
    ) -> Float[Array, "B S K A"]:
        """As in `Dispatch`."""

        def run(plan: Any, x: Array, weights: Array) -> Array:
            y = self._experts.map(plan, _flat(x, 1), _whole(weights))
            return y.reshape(*x.shape[:2], *y.shape[1:])

        specs = (_PER_DEVICE, _tokens("width"), parameter_spec(_INWARDS))
        return self._run(run, specs, _tokens("choice", "hidden"))(self._plan, x, weights)

    def reduce(
        self, slots: Float[Array, "B S K A"], weights: Float[Array, "E A D"]
    ) -> Float[Array, "B S D"]:
        """As in `Dispatch`."""

        def run(plan: Any, slots: Array, weights: Array) -> Array:
            y = self._experts.reduce(plan, _flat(slots, 2), _whole(weights))
            return jax.lax.psum(y, "tensor").reshape(*slots.shape[:2], -1)

        specs = (_PER_DEVICE, _tokens("choice", "hidden"), parameter_spec(_OUTWARDS))
        return self._run(run, specs, _tokens("width"))(self._plan, slots, weights)

    def feed_forward(
        self,
        x: Float[Array, "B S D"],
        up: Float[Array, "E D F"],
        down: Float[Array, "E F D"],
        gate: Float[Array, "E D F"] | None,
        activation: Callable[[jax.Array], jax.Array],
    ) -> Float[Array, "B S D"]:
        """As in `Dispatch`."""

        def run(plan: Any, x: Array, up: Array, down: Array, gate: Array | None) -> Array:
            gate = None if gate is None else _whole(gate)
            y = self._experts.feed_forward(
                plan, _flat(x, 1), _whole(up), _whole(down), gate, activation
            )
            return jax.lax.psum(y, "tensor").reshape(x.shape)

        inwards, outwards = parameter_spec(_INWARDS), parameter_spec(_OUTWARDS)
        specs = (_PER_DEVICE, _tokens("width"), inwards, outwards, inwards)
        return self._run(run, specs, _tokens("width"))(self._plan, x, up, down, gate)

    def _run(self, function: Callable[..., Any], in_specs: Any, out_specs: Any) -> Any:
        # Kernels do not declare over which axes their results vary, so that this is not checked.
        return jax.shard_map(
            function, mesh=self._mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False
        )


def _tokens(*axes: str) -> PartitionSpec:
    return activation_spec("batch", "sequence", *axes)


def _flat(x: Array, kept: int) -> Array:
    return x.reshape(-1, *x.shape[x.ndim - kept :])


def _whole(weights: Array) -> Array:
    """Gathers a bank's rows over fsdp; its gradient is reduced and scattered."""
    return jax.lax.all_gather(weights, "fsdp", axis=1, tiled=True)
