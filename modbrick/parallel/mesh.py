"""The mesh of devices: its axes, their sizes, and how it is made."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import jax
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh

from modbrick.errors import InputError

AXES = ("data", "fsdp", "expert", "sequence", "tensor")
"""From the slowest links to the fastest: what communicates most lies closest together."""

BATCH_AXES = ("data", "fsdp", "expert")
"""Axes that a batch's rows are dealt out over."""


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Sizes of the mesh's axes; their product is the number of devices.

    Attributes:
      data: groups of devices that keep the same parameters and see different rows. -1: all the
        devices that the other axes leave.
      fsdp: devices over which every parameter is divided, gathered layer by layer where it is used;
        they see different rows.
      expert: devices over which the experts of every bank are dealt out; they see different rows,
        and exchange tokens.
      sequence: devices over which each row's positions are divided.
      tensor: devices over which hidden units, heads and vocabulary are divided.
      slices: groups of devices without fast links between them (slices of TPU pods); whole groups
        of the data axis lie in one.

    Examples:
        >>> import modbrick
        >>> modbrick.MeshConfig(fsdp=8, expert=4).sizes(64)
        {'data': 2, 'fsdp': 8, 'expert': 4, 'sequence': 1, 'tensor': 1}
    """

    data: int = -1
    fsdp: int = 1
    expert: int = 1
    sequence: int = 1
    tensor: int = 1
    slices: int = 1

    def __post_init__(self) -> None:
        for name in (*AXES, "slices"):
            size = getattr(self, name)
            if size < 1 and not (name == "data" and size == -1):
                raise InputError(f"mesh.{name} must be at least 1, got {size}")
        if self.data != -1 and self.data % self.slices:
            raise InputError(
                f"mesh.data {self.data} must be a multiple of mesh.slices {self.slices}: only the "
                "data axis goes across slices"
            )

    def sizes(self, devices: int) -> dict[str, int]:
        """Returns the size of each axis on so many devices, in the order of `AXES`.

        Raises:
          InputError: the axes do not multiply to the number of devices.
        """
        sizes = {name: getattr(self, name) for name in AXES}
        others = math.prod(size for name, size in sizes.items() if name != "data")
        if self.data == -1:
            sizes["data"] = max(devices // others, 1)
        if math.prod(sizes.values()) != devices:
            product = " x ".join(f"{name} {size}" for name, size in sizes.items() if size > 1)
            raise InputError(
                f"a mesh of {product or 'data 1'} is {math.prod(sizes.values())} devices, but "
                f"there are {devices}: change mesh.* so that the product agrees"
            )
        if sizes["data"] % self.slices:
            raise InputError(
                f"a data axis of {sizes['data']} does not divide into {self.slices} mesh.slices"
            )
        return sizes


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Arranges devices so that neighbours on a mesh axis are neighbours on the machine.

    Args:
      config: sizes of the axes.
      devices: of all processes; None: all that there are.

    Raises:
      InputError: the sizes do not fit the devices.
    """
    devices = jax.devices() if devices is None else list(devices)
    shape = tuple(config.sizes(len(devices)).values())
    try:
        if config.slices > 1:
            arranged = mesh_utils.create_hybrid_device_mesh(
                (shape[0] // config.slices, *shape[1:]),
                (config.slices, *(1 for _ in shape[1:])),
                devices,
                allow_split_physical_axes=True,
            )
        else:
            arranged = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    except (ValueError, NotImplementedError) as error:
        raise InputError(f"these devices cannot be arranged as {config}: {error}") from error
    return Mesh(arranged, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def current_mesh() -> AbstractMesh | None:
    """Returns the mesh in force (`jax.set_mesh`) if it has more than one device, or else None."""
    mesh = jax.sharding.get_abstract_mesh()
    return mesh if not mesh.empty and mesh.size > 1 else None
