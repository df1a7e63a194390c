from __future__ import annotations

import pytest

from modbrick.errors import InputError
from modbrick.hardware import PEAK_FLOPS
from modbrick.planning.topology import EXAMPLES, GENERATIONS, find_topology
from pallas_kernels.compile_report.chips import TPU_CHIPS


@pytest.mark.parametrize("name", EXAMPLES)
def test_names_are_read_back(name):
    topology = find_topology(name)
    assert topology.name == name
    assert topology.devices % 8 == 0


def test_counts_devices_of_all_slices():
    assert find_topology("v5p:4x4x4").devices == 64
    assert find_topology("v5e:16x16", slices=2).devices == 512
    assert find_topology("tpu7x:4x4x4").devices == 128  # two cores a chip


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("v9:4x4", "known are v5e, v5p, v6e, written"),
        ("v5p", "known are"),
        ("v5q:4x4x4", "did you mean"),
        ("v5p:4x4", "3 axes"),
        ("v5e:4x4x4", "2 axes"),
        ("v5p:3x4x4", "hosts of 2x2x1"),
        ("v5e:0x4", "hosts"),
    ],
)
def test_refuses_in_one_line(name, says):
    with pytest.raises(InputError, match=says) as error:
        find_topology(name)
    assert "\n" not in str(error.value)


def test_agrees_with_what_is_known_of_chips_elsewhere():
    for name, chip in TPU_CHIPS.items():
        assert GENERATIONS[name].peak_flops == chip.matmul_flops
        assert GENERATIONS[name].hbm_bandwidth == chip.hbm_bandwidth
    assert GENERATIONS["v5p"].peak_flops == PEAK_FLOPS["TPU v5"]
    assert all(generation.source for generation in GENERATIONS.values())


def test_rings_close_along_whole_pods_and_cubes():
    assert find_topology("v5e:16x16").wraps(0)
    assert not find_topology("v5e:8x16").wraps(0)
    assert find_topology("v5p:4x4x8").wraps(2)
    assert not find_topology("v5p:2x2x4").wraps(2)
