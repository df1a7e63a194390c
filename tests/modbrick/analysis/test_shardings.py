"""Shapes that each device keeps: by the rules, and the whole together."""

from __future__ import annotations

import math

import pytest

from modbrick.analysis.shardings import describe_shardings
from modbrick.config.families import moduleformer
from modbrick.parallel import MeshConfig, mesh_axis_names

CONFIG = moduleformer(
    vocabulary=64,
    width=16,
    layers=3,
    heads=2,
    attention_width=16,
    feed_forward_width=32,
    attention_experts=8,
    feed_forward_experts=8,
    router_width=8,
)


@pytest.mark.parametrize(
    "mesh",
    [
        MeshConfig(data=8),
        MeshConfig(data=2, expert=4),
        MeshConfig(data=1, fsdp=2, tensor=2, expert=2),
    ],
    ids=str,
)
def test_a_parameter_is_divided_by_the_axes_that_its_spec_names(mesh: MeshConfig) -> None:
    report = describe_shardings(CONFIG, mesh, 8)
    for placement in report.placements:
        parts = math.prod(
            report.mesh.shape[name] for by in placement.spec for name in mesh_axis_names(by)
        )
        assert math.prod(placement.local) * parts == placement.info.size
        if "expert" in placement.info.axes:
            axis = placement.info.axes.index("expert")
            assert placement.local[axis] * report.mesh.shape["expert"] == 8


def test_a_mesh_of_data_alone_keeps_everything_everywhere() -> None:
    report = describe_shardings(CONFIG, MeshConfig(data=8), 8)
    assert report.values_per_device == sum(p.info.size for p in report.placements)
