"""Sizes of a mesh: what they multiply to, and what is refused."""

from __future__ import annotations

import math
import re

import jax
import pytest

from modbrick.errors import InputError
from modbrick.parallel import AXES, MeshConfig, current_mesh, make_mesh


@pytest.mark.parametrize(
    ("config", "devices", "data"),
    [
        (MeshConfig(), 1, 1),
        (MeshConfig(), 6, 6),
        (MeshConfig(fsdp=2, expert=4), 64, 8),
        (MeshConfig(data=3, tensor=2), 6, 3),
        (MeshConfig(fsdp=4, slices=2), 16, 4),
    ],
)
def test_an_open_data_axis_takes_what_the_others_leave(
    config: MeshConfig, devices: int, data: int
) -> None:
    sizes = config.sizes(devices)
    assert tuple(sizes) == AXES
    assert sizes["data"] == data
    assert math.prod(sizes.values()) == devices


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"expert": 0}, "mesh.expert must be at least 1, got 0"),
        ({"data": -2}, "mesh.data must be at least 1, got -2"),
        ({"data": 3, "slices": 2}, "mesh.data 3 must be a multiple of mesh.slices 2"),
    ],
)
def test_sizes_that_no_devices_could_have_are_refused(sizes: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        MeshConfig(**sizes)


@pytest.mark.parametrize(
    ("config", "devices", "message"),
    [
        (MeshConfig(data=2, fsdp=2), 8, "a mesh of data 2 x fsdp 2 is 4 devices, but there are 8"),
        (MeshConfig(expert=3), 8, "is 6 devices, but there are 8"),
        (MeshConfig(expert=16), 8, "a mesh of expert 16 is 16 devices, but there are 8"),
        (MeshConfig(slices=2), 3, "a data axis of 3 does not divide into 2 mesh.slices"),
    ],
)
def test_sizes_that_these_devices_do_not_have_are_refused(
    config: MeshConfig, devices: int, message: str
) -> None:
    with pytest.raises(InputError, match=re.escape(message)) as refused:
        config.sizes(devices)
    assert "\n" not in str(refused.value)


def test_one_device_is_a_mesh_but_none_that_divides_anything() -> None:
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    assert mesh.axis_names == AXES
    assert mesh.size == 1
    with jax.set_mesh(mesh):
        assert current_mesh() is None
