"""How an implementation is chosen, and how a choice that cannot run says so."""

from __future__ import annotations

import dataclasses
import sys
import types

import jax
import jax.numpy as jnp
import pytest

from pallas_kernels import grouped_matmul as op
from pallas_kernels.grouped_matmul import implementations, target
from pallas_kernels.grouped_matmul.target import Case

CASE = Case("grouped_matmul", jnp.dtype("float32"), jnp.dtype("float32"), 6, 2, 3, 4, 5)


def _kernel(refused_widths: tuple[int, ...], own_platform: str) -> types.ModuleType:
    def why_not(case, platform):
        if platform not in (None, own_platform):
            return f"it runs on {own_platform}s"
        if case is not None and case.width in refused_widths:
            return f"D={case.width} is not to its taste"
        return None

    module = types.ModuleType("kernel")
    module.__dict__["why_not"] = why_not
    return module


@pytest.fixture
def _kernels(monkeypatch):
    """Kernels for both accelerators, of which that for TPUs dislikes a width of 4."""
    monkeypatch.setattr(implementations, "_missing", lambda name: None)
    for name, widths in (("tpu", (4,)), ("gpu", ())):
        path = f"{implementations._PACKAGE}.{name}"
        monkeypatch.setitem(sys.modules, path, _kernel(widths, name))


@pytest.mark.usefixtures("_kernels")
@pytest.mark.parametrize(
    ("platform", "width", "expected"),
    [("cpu", 5, "xla"), ("tpu", 5, "tpu"), ("tpu", 4, "xla"), ("gpu", 4, "gpu")],
)
def test_none_takes_the_best_that_can_run_the_case(platform, width, expected):
    case = dataclasses.replace(CASE, width=width)
    assert op.choose_implementation(None, case, platform=platform) == expected


@pytest.mark.usefixtures("_kernels")
def test_a_named_kernel_is_refused_for_its_case_only():
    """The platform is known when it is lowered, and not before."""
    assert op.choose_implementation("tpu") == "tpu"
    assert op.choose_implementation("gpu", CASE) == "gpu"
    with pytest.raises(ValueError, match="implementation='tpu' cannot run: D=4 is not to its"):
        op.choose_implementation("tpu", CASE)


@pytest.mark.usefixtures("_kernels")
def test_reasons_can_be_asked_for():
    reasons = op.available_implementations(CASE, platform="tpu")
    assert reasons["reference"] is reasons["xla"] is None
    assert reasons["gpu"] == "it runs on gpus"
    assert "taste" in (reasons["tpu"] or "")


def test_a_kernel_that_is_not_there_says_so(monkeypatch):
    monkeypatch.setattr(implementations, "_PACKAGE", "pallas_kernels.grouped_matmul.plan")
    monkeypatch.setattr(implementations.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="the gpu kernel is not part of this version"):
        op.choose_implementation("gpu")
    assert op.choose_implementation(platform="gpu") == "xla"


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="implementation='cuda' is unknown; known are 'reference'"):
        op.choose_implementation("cuda")


@pytest.mark.usefixtures("_kernels")
def test_none_takes_no_kernel_where_arrays_may_be_partitioned():
    devices = [jax.sharding.AbstractDevice("TPU v5p", 1, platform="tpu")]
    mesh = jax.sharding.AbstractMesh(
        (4, 1),
        ("data", "expert"),
        (jax.sharding.AxisType.Auto,) * 2,
        abstract_device=devices[0],
    )
    with jax.sharding.use_abstract_mesh(mesh):
        assert target.platform_in_force() == "tpu"
        assert target.device_kind_in_force() == "TPU v5p"
        assert op.choose_implementation() == "xla"
        assert "data=4" in (op.available_implementations()["tpu"] or "")
    manual = mesh.update(axis_types=(jax.sharding.AxisType.Manual, jax.sharding.AxisType.Auto))
    with jax.sharding.use_abstract_mesh(manual):
        assert op.choose_implementation() == "tpu"


def test_without_a_mesh_the_default_device_decides():
    assert target.platform_in_force() == jax.default_backend()
    with jax.default_device(jax.devices("cpu")[0]):
        assert target.platform_in_force() == "cpu"
        assert target.device_kind_in_force() == "cpu"
