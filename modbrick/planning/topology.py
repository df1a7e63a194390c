"""Topologies of TPU chips: the devices, their memory and rates, and the links between them."""

from __future__ import annotations

import dataclasses
import math
import re

from modbrick.errors import InputError
from modbrick.schema import nearest


@dataclasses.dataclass(frozen=True)
class Generation:
    """A TPU generation, as one jax device of it sees it.

    Attributes:
      name: as in names of topologies.
      peak_flops: dense bfloat16 operations per second.
      hbm_bytes: what a program may use.
      hbm_bandwidth: bytes per second.
      link_bandwidth: bytes per second of one link between neighbours, in one direction.
      dimensions: of the torus.
      network_bandwidth: bytes per second to and from other slices, through the data centre.
      devices_per_chip: jax devices on a chip, which share its links.
      source: where the figures are published, and what is derived.
    """

    name: str
    peak_flops: float
    hbm_bytes: int
    hbm_bandwidth: float
    link_bandwidth: float
    dimensions: int
    network_bandwidth: float
    devices_per_chip: int
    source: str


# `hbm_bytes` is what libtpu 0.0.50 allows a program, as it says where one is too large (15.75,
# 95.73, 31.24, 94.74 GiB): the published capacity less what the system keeps.
_SOURCE = (
    "cloud.google.com/tpu/docs/{page}: peak, HBM bandwidth; links: {links}; network: {network}; "
    "HBM: the compiler's limit"
)
GENERATIONS = {
    generation.name: generation
    for generation in (
        Generation(
            "v5e",
            197e12,
            int(15.75 * 2**30),
            819e9,
            50e9,
            2,
            3.125e9,
            1,
            _SOURCE.format(
                page="v5e",
                links="1,600 Gbit/s a chip over 4 ports",
                network="6.4 Tbit/s a pod of 256",
            ),
        ),
        Generation(
            "v5p",
            459e12,
            int(95.73 * 2**30),
            2765e9,
            100e9,
            3,
            6.25e9,
            1,
            _SOURCE.format(
                page="v5p", links="4,800 Gbit/s a chip over 6 ports", network="50 Gbit/s a chip"
            ),
        ),
        Generation(
            "v6e",
            918e12,
            int(31.24 * 2**30),
            1638e9,
            100e9,
            2,
            12.5e9,
            1,
            _SOURCE.format(
                page="v6e",
                links="3,200 Gbit/s a chip over 4 ports",
                network="25.6 Tbit/s a pod of 256",
            ),
        ),
        Generation(
            "tpu7x",
            1153.5e12,
            int(94.74 * 2**30),
            3690e9,
            100e9,
            3,
            6.25e9,
            2,
            _SOURCE.format(
                page="tpu7x",
                links="1,200 GB/s a chip, both directions, over 6 ports",
                network="100 Gbit/s a chip",
            )
            + "; a device is one of a chip's two cores",
        ),
    )
}

EXAMPLES = ("v5e:16x16", "v5p:4x4x4", "v6e:16x16")
"""One of each generation whose kernels' rates are kept; of others they are to be measured first."""

_HOST = (2, 2, 1)  # chips of one host, along the torus's axes


@dataclasses.dataclass(frozen=True)
class Topology:
    """Chips of one generation in a torus, or several such slices.

    Attributes:
      generation: of the chips.
      shape: chips along each axis of the torus.
      slices: how many of these.
    """

    generation: Generation
    shape: tuple[int, ...]
    slices: int = 1

    @property
    def name(self) -> str:
        """Name of one slice: `v5p:4x4x4`."""
        return f"{self.generation.name}:{'x'.join(map(str, self.shape))}"

    @property
    def devices(self) -> int:
        """Number of jax devices."""
        return self.slices * math.prod(self.shape) * self.generation.devices_per_chip

    def wraps(self, axis: int) -> bool:
        """Returns whether the last chip along an axis is linked to the first.

        So it is along the full axis of a two-dimensional pod (16), and in three dimensions where
        slices are made of whole cubes of 4 x 4 x 4 (cloud.google.com/tpu/docs/v5p).
        """
        if self.generation.dimensions == 2:
            return self.shape[axis] == 16
        return all(size % 4 == 0 for size in self.shape)


def find_topology(name: str, slices: int = 1) -> Topology:
    """Returns the topology of that name.

    Args:
      name: a generation and the chips along each axis, `v5p:4x4x4`.
      slices: how many of these.

    Raises:
      InputError: the generation is unknown, or the shape is none of its.
    """
    match = re.fullmatch(r"(\w+):(\d+(?:x\d+)*)", name)
    known = (
        f"known are {', '.join(name.partition(':')[0] for name in EXAMPLES)}, "
        f"written such as {', '.join(EXAMPLES)}"
    )
    if match is None or match[1] not in GENERATIONS:
        asked = name.partition(":")[0]
        hint = f"; {nearest(asked, GENERATIONS)}" if match is not None else ""
        raise InputError(f"topology {name!r} is unknown{hint}: {known}")
    generation = GENERATIONS[match[1]]
    shape = tuple(int(size) for size in match[2].split("x"))
    if len(shape) != generation.dimensions:
        raise InputError(
            f"topology {name!r}: {generation.name} is a torus of {generation.dimensions} axes, "
            f"got {len(shape)}; {known}"
        )
    hosts = _HOST[: generation.dimensions]
    if any(size < 1 or size % unit for size, unit in zip(shape, hosts, strict=True)):
        raise InputError(
            f"topology {name!r} does not divide into hosts of {'x'.join(map(str, hosts))} chips"
        )
    return Topology(generation, shape, slices)
