"""Rules from logical axes to mesh axes: one table for parameters, one for activations."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from modbrick.errors import InputError, listed
from modbrick.parallel.mesh import BATCH_AXES, current_mesh
from modbrick.parameters import ParameterInfo, ParameterTable

MeshAxes = str | tuple[str, ...] | None

PARAMETER_RULES: Mapping[str, MeshAxes] = {
    "layer": None,
    "expert": "expert",
    "brick": None,
    "width": None,
    "hidden": "tensor",
    "heads": "tensor",
    "key_heads": "tensor",
    "head_width": None,
    "vocabulary": "tensor",
    "router_expert": None,
    "router_hidden": None,
    "scalar": None,
    "rank": None,
    "brick_input": None,
    "brick_output": None,
    "position": None,
    "brick_expert": None,
    "brick_entry": None,
}

FSDP = ("width", "hidden", "heads")
"""Axes that fsdp divides: of a matrix the first one that stands here.

That is what it is multiplied along, so that parts are whole rows, which collectives gather and
scatter without changing how they lie. Only of the embedding, whose rows are looked up, it is the
other axis.
"""

ACTIVATION_RULES: Mapping[str, MeshAxes] = {
    "batch": BATCH_AXES,
    "sequence": "sequence",
    "width": None,
    "hidden": "tensor",
    "heads": "tensor",
    "choice": None,
    "head_width": None,
}


def parameter_spec(axes: tuple[str, ...]) -> PartitionSpec:
    """Returns how a parameter with these logical axes is divided.

    Vectors (of a layer, of an expert) are not divided over fsdp: what that would save is less than
    the collective costs.
    """
    rules = [PARAMETER_RULES[axis] for axis in axes]
    if len([axis for axis in axes if axis not in ("layer", "expert", "brick")]) > 1:
        for place, axis in enumerate(axes):
            if axis in FSDP:
                rules[place] = (*mesh_axis_names(rules[place]), "fsdp") if rules[place] else "fsdp"
                break
    return PartitionSpec(*rules)


def gathered_spec(axes: tuple[str, ...]) -> PartitionSpec:
    """Returns how a parameter is divided where it is used: as kept, but whole over fsdp."""
    return PartitionSpec(*(_without_fsdp(rule) for rule in parameter_spec(axes)))


def activation_spec(*axes: str) -> PartitionSpec:
    """Returns how an activation with these logical axes is divided."""
    return PartitionSpec(*(ACTIVATION_RULES[axis] for axis in axes))


def constrain(x: jax.Array, *axes: str) -> jax.Array:
    """Fixes the division of an activation with these logical axes; nothing without a mesh."""
    if current_mesh() is None:
        return x
    return jax.lax.with_sharding_constraint(x, activation_spec(*axes))


def gathered(weight: jax.Array, axes: tuple[str, ...]) -> jax.Array:
    """Makes a parameter whole over fsdp, for its use in one layer; nothing without a mesh."""
    if current_mesh() is None:
        return weight
    return jax.lax.with_sharding_constraint(weight, gathered_spec(axes))


def parameter_shardings(
    parameters: ParameterTable | Iterable[ParameterInfo], mesh: Mesh | AbstractMesh
) -> dict[str, NamedSharding]:
    """Returns the sharding of each parameter by path.

    Raises:
      InputError: a dimension does not divide; lists every one.
    """
    infos = list(parameters)
    problems = [line for info in infos for line in _problems(info, mesh)]
    if problems:
        raise InputError(f"the mesh does not fit the model: {listed(problems, '; ')}")
    return {info.path: NamedSharding(mesh, parameter_spec(info.axes)) for info in infos}


def mesh_axes_size(mesh: Mesh | AbstractMesh, axes: MeshAxes) -> int:
    """Returns over how many devices these mesh axes divide."""
    return math.prod(mesh.shape[name] for name in mesh_axis_names(axes))


def mesh_axis_names(axes: MeshAxes) -> tuple[str, ...]:
    """Returns the mesh axes that divide an axis, as a spec says it: none, one or several."""
    return () if axes is None else (axes,) if isinstance(axes, str) else axes


def _without_fsdp(axes: MeshAxes) -> MeshAxes:
    rest = tuple(name for name in mesh_axis_names(axes) if name != "fsdp")
    return rest[0] if len(rest) == 1 else rest or None


def _problems(info: ParameterInfo, mesh: Mesh | AbstractMesh) -> list[str]:
    problems = []
    for axis, size, rule in zip(info.axes, info.shape, parameter_spec(info.axes), strict=True):
        if size % mesh_axes_size(mesh, rule):
            names = [name for name in mesh_axis_names(rule) if mesh.shape[name] > 1]
            by = " x ".join(f"mesh.{name} {mesh.shape[name]}" for name in names)
            problems.append(f"{axis} {size} of {info.address()} does not divide by {by}")
    return problems
