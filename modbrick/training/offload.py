"""Keeping the optimizer's moments in the host's memory between updates."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding

from modbrick.errors import InputError
from modbrick.execution import ExecutionConfig
from modbrick.layers.rematerialisation import HOST
from modbrick.training.state import TrainState


def check_host_memory(execution: ExecutionConfig, mesh: Mesh | AbstractMesh) -> None:
    """Refuses what needs the host's memory where devices cannot reach it.

    Raises:
      InputError: the devices have no such memory; names the option and what they have.
    """
    wanted = [
        name
        for name in ("activation_memory", "optimizer_memory")
        if getattr(execution, name) == "host"
    ]
    if not wanted or isinstance(mesh, AbstractMesh):
        return
    device = mesh.devices.flat[0]
    kinds = [memory.kind for memory in device.addressable_memories()]
    if HOST not in kinds:
        raise InputError(
            f"execution.{wanted[0]} is host, but {device.device_kind} has no memory {HOST} (it has "
            f"{', '.join(kinds)}): set it to device"
        )


def on_host(abstract: Any, shardings: Any) -> Any:
    """Returns shardings of an optimizer's state with every moment in the host's memory.

    Args:
      abstract: shapes of the state; scalars stay on the devices.
      shardings: of the same, on devices.
    """

    def place(leaf: jax.ShapeDtypeStruct, sharding: NamedSharding) -> NamedSharding:
        return sharding.with_memory_kind(HOST) if leaf.ndim else sharding

    return jax.tree.map(place, abstract, shardings)


def offloaded(
    step: Callable[[TrainState, Any], tuple[TrainState, Any]],
) -> Callable[[TrainState, Any], tuple[TrainState, Any]]:
    """Returns the step with moments brought to the devices for the update, and back after it."""

    def run(state: TrainState, batch: Any) -> tuple[TrainState, Any]:
        here = jax.tree.map(_to(jax.memory.Space.Device), state.optimizer)
        new, report = step(replace(state, optimizer=here), batch)
        return replace(
            new, optimizer=jax.tree.map(_to(jax.memory.Space.Host), new.optimizer)
        ), report

    return run


def _to(space: Any) -> Callable[[jax.Array], jax.Array]:
    return lambda leaf: jax.device_put(leaf, space) if leaf.ndim else leaf
