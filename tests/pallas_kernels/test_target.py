from __future__ import annotations

import contextlib
from typing import Any

import jax
import pytest

from pallas_kernels import target


def _tracing_for(kind: str, platform: str) -> contextlib.AbstractContextManager[Any]:
    device = jax.sharding.AbstractDevice(kind, 1, platform=platform)
    return jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), (), abstract_device=device))


@pytest.mark.parametrize(
    ("kind", "platform", "expected"),
    [("TPU v5p", "tpu", "tpu"), ("NVIDIA H100", "cuda", "gpu"), ("MI300X", "rocm", "gpu")],
)
def test_the_mesh_decides(kind: str, platform: str, expected: str) -> None:
    with _tracing_for(kind, platform):
        assert target.platform_in_force() == expected
        assert target.device_kind_in_force() == kind


def test_without_a_mesh_the_default_device_decides() -> None:
    assert target.platform_in_force() == jax.default_backend()
    for device in (jax.devices("cpu")[0], "cpu"):
        with jax.default_device(device):
            assert target.platform_in_force() == "cpu"
            assert target.device_kind_in_force() == "cpu"


@pytest.mark.parametrize("kind", ["NVIDIA H100 80GB HBM3", "NVIDIA H200", "NVIDIA GH200 480GB"])
def test_hopper_gpus_are_known(kind: str) -> None:
    with _tracing_for(kind, "gpu"):
        assert target.no_hopper_gpu() is None


@pytest.mark.parametrize("kind", ["NVIDIA A100-SXM4-80GB", "NVIDIA B200", "AMD Instinct MI300X"])
def test_other_gpus_are_named(kind: str) -> None:
    with _tracing_for(kind, "gpu"):
        assert kind in (target.no_hopper_gpu() or "")


def test_without_a_gpu_at_hand_programs_can_be_lowered_for_one() -> None:
    assert target.no_hopper_gpu() is None
