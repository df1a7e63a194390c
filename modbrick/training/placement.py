"""Placement of the state of training on a mesh."""

from __future__ import annotations

from typing import Any

import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec
from jax.tree_util import DictKey

from modbrick.parallel import parameter_shardings, parameter_spec
from modbrick.parameters import ParameterSlice, Partition
from modbrick.training.state import TrainState


def state_shardings(
    abstract: TrainState, partition: Partition, mesh: Mesh | AbstractMesh
) -> TrainState:
    """Returns the sharding of each array of a state: moments lie where their parameter does.

    A part of a bank is not divided along the axis that its bricks were taken from: how many there
    are need not divide.

    Args:
      abstract: shapes of the state.
      partition: what the leaves hold.
      mesh: the mesh.

    Raises:
      InputError: the mesh does not divide a parameter; lists every one.
    """
    parameter_shardings(partition.table, mesh)  # refuses what does not divide, by name
    replicated: Any = NamedSharding(mesh, PartitionSpec())

    def of(parts: dict[str, ParameterSlice], tree: Any) -> Any:
        def sharding(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
            # Optimizers keep moments in mappings like the parameters', and scalars beside them.
            part = next(
                (parts[k.key] for k in path if isinstance(k, DictKey) and k.key in parts), None
            )
            if part is None or leaf.shape != part.shape:
                return replicated
            spec = list(parameter_spec(part.axes))
            if part.axis is not None:
                spec[part.axis] = None
            return NamedSharding(mesh, PartitionSpec(*spec))

        return jax.tree_util.tree_map_with_path(sharding, tree)

    return TrainState(
        step=replicated,
        trainable=of(partition.trainable, abstract.trainable),
        frozen=of(partition.frozen, abstract.frozen),
        optimizer=of(partition.trainable, abstract.optimizer),
    )


def placed(abstract: Any, shardings: Any) -> Any:
    """Returns shapes together with where the arrays are to lie, as restoring takes them."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        abstract,
        shardings,
    )
