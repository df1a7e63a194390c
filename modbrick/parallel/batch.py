"""Batches on a mesh: rows over the batch axes, positions of `[B, S]` over the sequence axis."""

from __future__ import annotations

import bisect
import functools
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding

from modbrick.errors import InputError
from modbrick.parallel.mesh import BATCH_AXES
from modbrick.parallel.rules import activation_spec, mesh_axes_size


def batch_sharding(mesh: Mesh | AbstractMesh, dimensions: int = 2) -> NamedSharding:
    """Returns how arrays of a batch are divided: all by rows, `[B, S]` by positions too."""
    axes = ("batch", "sequence") if dimensions == 2 else ("batch",)
    return NamedSharding(mesh, activation_spec(*axes))


@functools.lru_cache(maxsize=16)
def local_rows(mesh: Mesh, rows: int) -> tuple[int, ...]:
    """Returns which rows of a global batch this process's devices hold, ascending.

    Where a row's positions are divided over devices of several processes, each of them has it.

    Args:
      mesh: the mesh.
      rows: of the global batch.
    """
    shape = (rows, mesh.shape["sequence"])
    held: set[int] = set()
    for index in batch_sharding(mesh).addressable_devices_indices_map(shape).values():
        assert index is not None
        held.update(range(*index[0].indices(rows)))
    return tuple(sorted(held))


def place_batch(batch: Mapping[str, np.ndarray], mesh: Mesh, rows: int) -> dict[str, jax.Array]:
    """Returns the global batch of which each process holds its rows.

    Args:
      batch: arrays `[b]`, `[b, S]` or `[b, P, W]`, of the `local_rows` of this process.
      mesh: the mesh.
      rows: of the global batch, B.
    """
    mine = local_rows(mesh, rows)

    def place(local: np.ndarray) -> jax.Array:
        sharding = batch_sharding(mesh, local.ndim)

        def shard(index: tuple[slice, ...] | None) -> np.ndarray:
            assert index is not None
            return local[(local_slice(index[0], mine), *index[1:])]

        return jax.make_array_from_callback((rows, *local.shape[1:]), sharding, shard)

    return {name: place(array) for name, array in batch.items()}


def local_slice(rows: slice, mine: Sequence[int]) -> slice:
    """Returns where rows of a global batch, which one device holds, lie among this process's.

    Args:
      rows: of the global batch.
      mine: `local_rows` of this process.
    """
    start = bisect.bisect_left(mine, rows.start or 0)
    stop = len(mine) if rows.stop is None else bisect.bisect_left(mine, rows.stop)
    return slice(start, stop)


def check_rows(mesh: Mesh | AbstractMesh, rows: int, name: str) -> None:
    """Refuses rows that the mesh does not divide.

    Args:
      mesh: the mesh.
      rows: that are computed together.
      name: of their number, for the message.

    Raises:
      InputError: they do not divide.
    """
    devices = mesh_axes_size(mesh, BATCH_AXES)
    if rows % devices:
        axes = " x ".join(f"{axis} {mesh.shape[axis]}" for axis in BATCH_AXES)
        raise InputError(
            f"{name} does not divide over the {devices} devices of the mesh axes {axes}"
        )


def check_batch(
    mesh: Mesh | AbstractMesh,
    *,
    rows: int,
    microbatches: int,
    positions: int,
    name: str = "data.sequence_length",
) -> None:
    """Refuses a batch that the mesh does not divide.

    Args:
      mesh: the mesh.
      rows: of the global batch.
      microbatches: parts in which it is computed.
      positions: of each row.
      name: of their number, for the message.

    Raises:
      InputError: rows of a microbatch, or positions, do not divide.
    """
    of_rows = f"data.batch_size {rows} in {microbatches} training.microbatches"
    if rows % microbatches:
        raise InputError(f"{of_rows} does not divide evenly")
    check_rows(mesh, rows // microbatches, of_rows)
    # The head divides positions over the tensor axis too.
    parts = mesh_axes_size(mesh, ("sequence", "tensor"))
    if positions % parts:
        raise InputError(
            f"{name} {positions} does not divide by mesh.sequence "
            f"{mesh.shape['sequence']} x mesh.tensor {mesh.shape['tensor']}"
        )
