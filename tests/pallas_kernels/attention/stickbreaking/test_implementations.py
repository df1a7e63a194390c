from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from pallas_kernels.attention.stickbreaking.implementations import (
    IMPLEMENTATIONS,
    Case,
    current_platform,
    load_implementation,
    selected_implementation,
    unsupported,
)


def _case(dtype=jnp.bfloat16, width: int = 64) -> Case:
    array = jax.ShapeDtypeStruct((1, 128, 2, width), dtype)
    return Case(array, array, array)


def test_platform_is_that_of_mesh_then_device_then_backend() -> None:
    assert current_platform() == jax.default_backend()
    with jax.default_device(jax.devices("cpu")[0]):
        assert current_platform() == "cpu"
    device = jax.sharding.AbstractDevice("NVIDIA H100", num_cores=132, platform="gpu")
    mesh = jax.sharding.AbstractMesh(
        (1,), ("x",), (jax.sharding.AxisType.Auto,), abstract_device=device
    )
    with jax.sharding.use_abstract_mesh(mesh):
        assert current_platform() == "cuda"


@pytest.mark.parametrize("platform", ["cpu", "tpu", "gpu", "cuda", "rocm"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64"])
def test_none_picks_what_can_run(platform: str, dtype: str) -> None:
    case = _case(jax.dtypes.canonicalize_dtype(dtype))
    name = selected_implementation(None, case, platform)
    assert name in IMPLEMENTATIONS
    assert name != "reference"
    assert unsupported(name, case, platform) is None


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_a_named_one_runs_or_says_why_not(name: str) -> None:
    array = jax.ShapeDtypeStruct((1, 128, 2, 64), "float64")
    case = Case(array, array, array)
    reason = unsupported(name, case, {"tpu": "tpu", "gpu": "cuda"}.get(name, "cpu"))
    if reason is None:
        assert selected_implementation(name, case) == name
    else:
        with pytest.raises(ValueError, match="cannot run: ") as error:
            selected_implementation(name, case)
        assert reason in str(error.value)


def test_kernels_are_picked_where_nothing_is_left_to_partition() -> None:
    case = _case()
    auto = jax.sharding.AxisType.Auto
    for sizes, expected in (((1, 1), "tpu"), ((4, 1), "xla")):
        mesh = jax.sharding.AbstractMesh(sizes, ("x", "y"), (auto, auto))
        with jax.sharding.use_abstract_mesh(mesh):
            assert selected_implementation(None, case, "tpu") == expected
    taken = jax.sharding.AbstractMesh(
        (4, 1), ("x", "y"), (jax.sharding.AxisType.Manual, jax.sharding.AxisType.Auto)
    )
    with jax.sharding.use_abstract_mesh(taken):
        assert selected_implementation(None, case, "tpu") == "tpu"


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(ValueError, match="'fast'"):
        selected_implementation("fast")


def test_modules_have_what_the_registry_calls() -> None:
    for name in IMPLEMENTATIONS:
        assert callable(load_implementation(name).stickbreaking_attention)
