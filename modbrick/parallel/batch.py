"""Batches on a mesh: rows over the batch axes, positions over the sequence axis."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding

from modbrick.errors import InputError
from modbrick.parallel.mesh import BATCH_AXES
from modbrick.parallel.rules import activation_spec, mesh_axes_size


def batch_sharding(mesh: Mesh | AbstractMesh) -> NamedSharding:
    """Returns how arrays `[B, S]` of a batch are divided."""
    return NamedSharding(mesh, activation_spec("batch", "sequence"))


def place_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Returns the global batch of which each process holds its rows.

    Args:
      batch: this process's rows of arrays `[B, S]`.
      mesh: the mesh.
    """
    sharding = batch_sharding(mesh)
    return {
        name: jax.make_array_from_process_local_data(sharding, rows) for name, rows in batch.items()
    }


def check_batch(mesh: Mesh | AbstractMesh, *, rows: int, microbatches: int, positions: int) -> None:
    """Refuses a batch that the mesh does not divide.

    Args:
      mesh: the mesh.
      rows: of the global batch.
      microbatches: parts in which it is computed.
      positions: of each row.

    Raises:
      InputError: rows of a microbatch, or positions, do not divide.
    """
    devices = mesh_axes_size(mesh, BATCH_AXES)
    if rows % (microbatches * devices):
        axes = " x ".join(f"{name} {mesh.shape[name]}" for name in BATCH_AXES)
        raise InputError(
            f"data.batch_size {rows} in {microbatches} training.microbatches does not divide over "
            f"the {devices} devices of the mesh axes {axes}"
        )
    # The head divides positions over the tensor axis too.
    parts = mesh_axes_size(mesh, ("sequence", "tensor"))
    if positions % parts:
        raise InputError(
            f"data.sequence_length {positions} does not divide by mesh.sequence "
            f"{mesh.shape['sequence']} x mesh.tensor {mesh.shape['tensor']}"
        )
