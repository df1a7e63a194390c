"""Shapes of every parameter on one device of a mesh."""

from __future__ import annotations

import dataclasses
import math

from jax.sharding import AbstractMesh, PartitionSpec
from rich.table import Table

from modbrick.analysis.summary import BYTES_PER_TRAINED_PARAMETER
from modbrick.config import ModelConfig
from modbrick.decoder.functional import parameter_table
from modbrick.parallel import AXES, MeshConfig, mesh_axis_names, parameter_shardings
from modbrick.parameters import ParameterInfo


@dataclasses.dataclass(frozen=True)
class Placement:
    """Division of one stored parameter over a mesh.

    Attributes:
      info: the parameter.
      spec: the mesh axes that divide each of its axes.
      local: shape of what one device keeps.
    """

    info: ParameterInfo
    spec: PartitionSpec
    local: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class ShardingReport:
    """The parameters of a model on a mesh."""

    mesh: AbstractMesh
    placements: tuple[Placement, ...]

    @property
    def values_per_device(self) -> int:
        """Values that one device keeps."""
        return sum(math.prod(p.local) for p in self.placements)

    def table(self) -> Table:
        """Returns a table for people, to be printed by rich."""
        total = sum(p.info.size for p in self.placements)
        kept = self.values_per_device
        sizes = " x ".join(f"{name} {size}" for name, size in self.mesh.shape.items() if size > 1)
        table = Table(
            caption=(
                f"{self.mesh.size} devices ({sizes or 'data 1'}): each keeps {kept:,} of {total:,} "
                f"values, {4 * kept / 2**30:.2f} GiB in float32, "
                f"{BYTES_PER_TRAINED_PARAMETER * kept / 2**30:.2f} GiB to train with AdamW "
                "(parameters, gradients, moments)"
            ),
            caption_justify="left",
        )
        table.add_column("parameter", overflow="fold")
        for name in ("axes, and what divides them", "whole", "on each device"):
            table.add_column(name, overflow="fold")
        for placement in self.placements:
            divided = (
                "/".join([axis, *(n for n in mesh_axis_names(by) if self.mesh.shape[n] > 1)])
                for axis, by in zip(placement.info.axes, placement.spec, strict=True)
            )
            table.add_row(
                placement.info.address(),
                ", ".join(divided),
                " x ".join(map(str, placement.info.shape)),
                " x ".join(map(str, placement.local)),
            )
        return table


def describe_shardings(config: ModelConfig, mesh: MeshConfig, devices: int) -> ShardingReport:
    """Returns what each device would keep; needs no devices.

    Args:
      config: the model.
      mesh: sizes of the mesh's axes.
      devices: how many there would be.

    Raises:
      InputError: the mesh does not fit the devices or the model, by name.
    """
    abstract = AbstractMesh(tuple(mesh.sizes(devices).values()), AXES)
    parameters = parameter_table(config)
    shardings = parameter_shardings(parameters, abstract)
    return ShardingReport(
        abstract,
        tuple(
            Placement(info, shardings[info.path].spec, shardings[info.path].shard_shape(info.shape))
            for info in parameters
        ),
    )
