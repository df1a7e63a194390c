from __future__ import annotations

import itertools

import pytest

from modbrick.planning.interconnect import group_bandwidth
from modbrick.planning.topology import find_topology

V5P = find_topology("v5p:4x4x4")
PLACES = [(0, *place) for place in itertools.product(range(4), repeat=3)]
LINK = V5P.generation.link_bandwidth


def bandwidth(*places: tuple[int, ...], topology=V5P) -> float:
    return group_bandwidth(range(len(places)), places, topology)


def test_all_links_of_the_torus_serve_a_group_of_all():
    assert bandwidth(*PLACES) == 6 * LINK


def test_a_ring_has_two_directions_and_a_line_one():
    ring = [(0, 0, 0, z) for z in range(4)]
    assert bandwidth(*ring) == 2 * LINK
    assert bandwidth(*ring[:2]) == LINK
    open_line = find_topology("v5e:4x4")
    assert bandwidth(*[(0, 0, z) for z in range(4)], topology=open_line) == pytest.approx(
        open_line.generation.link_bandwidth
    )


def test_interleaved_groups_share_links():
    # Chips 0 and 2 of a ring of 4 meet over both directions, each shared with chips 1 and 3.
    assert bandwidth((0, 0, 0, 0), (0, 0, 0, 2)) == LINK
    line = find_topology("v5e:4x4")
    apart = bandwidth((0, 0, 0), (0, 0, 2), topology=line)
    # Half a link would serve them; no group is given less than one.
    assert apart == line.generation.link_bandwidth


def test_slices_meet_over_the_network():
    two = find_topology("v5p:4x4x4", slices=2)
    assert bandwidth((0, 0, 0, 0), (1, 0, 0, 0), topology=two) == two.generation.network_bandwidth


def test_devices_of_a_chip_share_its_links():
    seven = find_topology("tpu7x:4x4x4")
    ring = [(0, 0, 0, z) for z in range(4)]
    assert bandwidth(*ring, topology=seven) == seven.generation.link_bandwidth
