"""Many devices: the mesh, what lies where on it, and how experts and positions are divided."""

from modbrick.parallel.mesh import AXES, BATCH_AXES, MeshConfig, current_mesh, make_mesh
from modbrick.parallel.rules import (
    activation_spec,
    constrain,
    gathered,
    mesh_axis_names,
    parameter_shardings,
    parameter_spec,
)

__all__ = [
    "AXES",
    "BATCH_AXES",
    "MeshConfig",
    "activation_spec",
    "constrain",
    "current_mesh",
    "gathered",
    "make_mesh",
    "mesh_axis_names",
    "parameter_shardings",
    "parameter_spec",
]
