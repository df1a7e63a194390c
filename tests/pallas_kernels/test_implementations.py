"""Choice of an implementation, and the refusal of one that cannot run."""

from __future__ import annotations

import dataclasses
import types

import jax
import jax.numpy as jnp
import pytest

from pallas_kernels import grouped_matmul, softmax_attention, stickbreaking_attention
from pallas_kernels.attention.softmax.implementations import REGISTRY as SOFTMAX
from pallas_kernels.attention.stickbreaking.implementations import REGISTRY as STICKBREAKING
from pallas_kernels.grouped_matmul.implementations import REGISTRY as GROUPED
from pallas_kernels.implementations import Implementation, Registry

OPERATIONS = [grouped_matmul, softmax_attention, stickbreaking_attention]


@dataclasses.dataclass(frozen=True)
class Case:
    width: int = 4


@dataclasses.dataclass(frozen=True)
class Kernels(Registry[Case]):
    """Kernels for both accelerators, of which that for TPUs dislikes a width of 4."""

    def load_implementation(self, name: str) -> types.ModuleType:
        def unsupported(case: Case | None, platform: str | None) -> str | None:
            if platform not in (None, self.implementations[name].platform):
                return f"it runs on {name}s"
            if name == "tpu" and case is not None and case.width == 4:
                return f"D={case.width} is not to its taste"
            return None

        module = types.ModuleType("kernel")
        module.__dict__["unsupported"] = unsupported
        return module


KERNELS = Kernels(
    {
        "reference": Implementation("reference"),
        "xla": Implementation("xla"),
        "tpu": Implementation("tpu", "tpu"),
        "gpu": Implementation("gpu", "gpu"),
        "other": Implementation("other", "gpu", automatic=False),
    }
)


@pytest.mark.parametrize(
    ("platform", "width", "expected"),
    [
        ("cpu", 5, "xla"),
        ("tpu", 5, "tpu"),
        ("tpu", 4, "xla"),
        ("gpu", 4, "gpu"),
        ("cuda", 4, "gpu"),
        ("rocm", 4, "gpu"),
        ("metal", 5, "xla"),
    ],
)
def test_none_takes_the_best_that_can_run_the_case(
    platform: str, width: int, expected: str
) -> None:
    assert KERNELS.choose_implementation(None, Case(width), platform) == expected


def test_a_named_kernel_is_refused_for_its_case_only() -> None:
    """The platform is known when it is lowered, and not before."""
    assert KERNELS.choose_implementation("tpu") == "tpu"
    assert KERNELS.choose_implementation("gpu", Case()) == "gpu"
    assert KERNELS.choose_implementation("other", Case()) == "other"
    with pytest.raises(ValueError, match="implementation='tpu' cannot run: D=4 is not to its"):
        KERNELS.choose_implementation("tpu", Case())


def test_reasons_can_be_asked_for() -> None:
    reasons = KERNELS.available_implementations(Case(), "tpu")
    assert reasons["reference"] is reasons["xla"] is None
    assert reasons["gpu"] == "it runs on gpus"
    assert "taste" in (reasons["tpu"] or "")


def test_none_takes_no_kernel_where_arrays_may_be_partitioned() -> None:
    device = jax.sharding.AbstractDevice("TPU v5p", 1, platform="tpu")
    automatic, manual = jax.sharding.AxisType.Auto, jax.sharding.AxisType.Manual
    names, types = ("data", "expert"), (automatic, automatic)
    mesh = jax.sharding.AbstractMesh((4, 1), names, types, abstract_device=device)
    with jax.sharding.use_abstract_mesh(mesh):
        assert KERNELS.choose_implementation() == "xla"
        assert "data=4" in (KERNELS.available_implementations()["tpu"] or "")
        assert KERNELS.choose_implementation("tpu") == "tpu"
    for sizes, types in (((1, 1), (automatic, automatic)), ((4, 1), (manual, automatic))):
        mesh = jax.sharding.AbstractMesh(sizes, names, types, abstract_device=device)
        with jax.sharding.use_abstract_mesh(mesh):
            assert KERNELS.choose_implementation() == "tpu"


@pytest.mark.parametrize("operation", OPERATIONS)
def test_unknown_names_are_refused(operation: types.ModuleType) -> None:
    with pytest.raises(ValueError, match="implementation='fast' is unknown; known are 'reference'"):
        operation.choose_implementation("fast")


@pytest.mark.parametrize(
    ("registry", "functions"),
    [
        (GROUPED, ("grouped_matmul", "grouped_feed_forward")),
        (SOFTMAX, ("softmax_attention",)),
        (STICKBREAKING, ("stickbreaking_attention",)),
    ],
)
def test_modules_have_what_the_operations_call(
    registry: Registry, functions: tuple[str, ...]
) -> None:
    for name, implementation in registry.implementations.items():
        module = registry.load_implementation(name)
        assert all(callable(getattr(module, function)) for function in functions)
        if implementation.platform is not None:
            elsewhere = {"tpu": "gpu", "gpu": "tpu"}[implementation.platform]
            assert elsewhere in (module.unsupported(None, elsewhere) or "")


@pytest.mark.parametrize("platform", ["cpu", "tpu", "gpu", "cuda"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64"])
def test_what_is_picked_can_run(platform: str, dtype: str) -> None:
    array = jax.ShapeDtypeStruct((1, 128, 2, 64), jnp.dtype(dtype))
    case = stickbreaking_attention.Case(array, array, array)
    name = stickbreaking_attention.choose_implementation(None, case, platform)
    assert name != "reference"
    assert STICKBREAKING.unsupported(name, case, platform) is None


def test_the_earlier_name_of_the_choice_still_works() -> None:
    assert (
        stickbreaking_attention.selected_implementation
        == stickbreaking_attention.choose_implementation
    )
