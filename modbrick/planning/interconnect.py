"""Bandwidth within a group of devices: the links of the torus that it has for itself."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from modbrick.planning.topology import Topology


def group_bandwidth(
    group: Sequence[int], coordinates: Sequence[Sequence[int]], topology: Topology
) -> float:
    """Returns bytes per second that each device of a group can receive from the others.

    A group that spans an axis of the torus has both directions of it where the axis is closed to a
    ring, and on an open line as much as its ends receive: one direction. Groups that lie
    interleaved along an axis share its links. What spans several axes uses the links of all. A
    group that spans slices is as fast as the network between them.

    Args:
      group: places in the mesh.
      coordinates: slice and place in the torus, by place in the mesh.
      topology: what the torus is.
    """
    generation = topology.generation
    members = [coordinates[place] for place in group]
    if len({member[0] for member in members}) > 1:
        return generation.network_bandwidth
    links = 0.0
    for axis in range(len(topology.shape)):
        places = sorted({member[1 + axis] for member in members})
        if len(places) < 2:
            continue
        stride = min(b - a for a, b in itertools.pairwise(places))
        # A group that takes every second chip of a ring goes around it all the same.
        closed = topology.wraps(axis) and len(places) * stride == topology.shape[axis]
        ring = closed and topology.shape[axis] > 2
        links += (2 if ring else 1) / stride
    # Devices of one chip meet on the chip: no slower than over one link.
    return max(links, 1.0) * generation.link_bandwidth / generation.devices_per_chip
