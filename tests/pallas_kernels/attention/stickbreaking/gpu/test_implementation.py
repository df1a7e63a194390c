"""The kernels for Hopper GPUs: simulated with detection of races, and what they are lowered to."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.attention.stickbreaking.gpu import implementation as gpu
from pallas_kernels.attention.stickbreaking.gpu import registers
from pallas_kernels.compile_report import lower_for_h100
from pallas_kernels.stickbreaking_attention import (
    Case,
    choose_implementation,
    stickbreaking_attention,
)
from tests.contracts import containment as contained
from tests.contracts import stickbreaking_attention as contract


@pytest.fixture
def _simulated() -> Iterator[None]:
    with registers.simulated(detect_races=True):
        yield


@pytest.mark.verify
@pytest.mark.usefixtures("_simulated")
class TestGPU(contract.StickbreakingAttentionContract):
    implementation = "gpu"
    dtype = jnp.bfloat16

    def case(self, name: str) -> contract.Case:
        # A simulated block of the grid takes a fifth of a second: few heads are enough.
        case = super().case(name)
        return dataclasses.replace(case, batch=1, heads=case.heads // case.groups, groups=1)

    @pytest.mark.parametrize("name", ["segments_and_padding", "window"])
    def test_chunks_of_rows_add_up(self, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        monkeypatch.setattr(gpu, "ROWS_AT_A_TIME", 128)
        assert gpu._rows_at_a_time(300) == 128
        self.test_agrees_with_float64(name)


@pytest.mark.verify
@pytest.mark.usefixtures("_simulated")
@pytest.mark.parametrize("name", ["padding", "a key of one head", "a query"])
def test_what_is_not_finite_reaches_what_sees_it(name: str) -> None:
    contained.assert_contained("stickbreaking", "gpu", name, rules="segments", dtype=jnp.bfloat16)


@pytest.mark.verify
@pytest.mark.usefixtures("_simulated")
def test_early_exit_limits_what_is_lost() -> None:
    contained.assert_early_exit_limits_what_is_lost("gpu", far=640, dtype=jnp.bfloat16)


@pytest.mark.usefixtures("_simulated")
class TestPartOfTheContract:
    """The part that can be simulated in a minute; `make verify` does it all."""

    contract = TestGPU()

    def test_agrees_with_float64(self) -> None:
        self.contract.test_agrees_with_float64("everything")

    def test_early_exit_keeps_its_bounds(self) -> None:
        self.contract.test_early_exit_keeps_its_bounds("fewer_queries", 0.1)


def _case(dtype: str = "bfloat16", width: int = 128, value_width: int = 128) -> Case:
    query, value = (jax.ShapeDtypeStruct((1, 256, 2, size), dtype) for size in (width, value_width))
    return Case(query, query, value)


@pytest.mark.parametrize(
    ("case", "platform", "reason"),
    [
        (_case(), "cpu", "Hopper GPUs, and the platform is 'cpu'"),
        (_case("float32"), "gpu", "float32 inputs are not supported.*TF32"),
        (_case(width=1024, value_width=1024), "gpu", "width 1024 .* registers"),
        (_case(value_width=320), "gpu", "width 320"),
    ],
)
def test_says_why_it_cannot_run(case: Case, platform: str, reason: str) -> None:
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(gpu.unsupported(case, platform))
    assert choose_implementation(None, case, platform) == "xla"


@pytest.mark.parametrize("width", [32, 64, 96, 128, 256])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_is_picked_on_hopper(width: int, dtype: str) -> None:
    for kind, expected in (("NVIDIA H100", "gpu"), ("NVIDIA A100", "xla"), ("NVIDIA B200", "xla")):
        device = jax.sharding.AbstractDevice(kind, 132, platform="gpu")
        mesh = jax.sharding.AbstractMesh((), (), abstract_device=device)
        with jax.sharding.use_abstract_mesh(mesh):
            assert choose_implementation(None, _case(dtype, width, width)) == expected


def test_an_error_names_the_reason() -> None:
    x = jnp.ones((1, 2, 1, 1024), jnp.bfloat16)
    with pytest.raises(ValueError, match="'gpu' cannot run: heads of width 1024"):
        stickbreaking_attention(x, x, x, implementation="gpu")


@pytest.mark.parametrize(
    ("dtype", "products"), [("bfloat16", "f32.bf16.bf16"), ("float16", "f32.f16.f16")]
)
def test_lowers_to_products_of_the_dtype(dtype: str, products: str) -> None:
    """The interpreter multiplies exactly, whatever the matrix unit would do."""
    array = jax.ShapeDtypeStruct((1, 256, 2, 64), dtype)

    def run(*arrays: jax.Array) -> Any:
        def call(*arrays: jax.Array) -> Any:
            return stickbreaking_attention(*arrays, window=100, implementation="gpu")

        results, pull = jax.vjp(call, *arrays)
        return results, pull(results)

    text = lower_for_h100(run, array, array, array)
    found = re.findall(r"wgmma\.mma_async\.sync\.aligned\.m\d+n\d+k\d+\.(f32\.\w+\.\w+)", text)
    assert set(found) == {products}


def test_padding_ids_are_of_no_query() -> None:
    extremes = np.iinfo(np.int32)
    for ids in ([[0, 5]], [[extremes.min, 3]], [[extremes.max, 3]]):
        query_ids = jnp.asarray(ids, jnp.int32)
        mask = jnp.array([[True, False]])
        rules = gpu.Visibility(0, query_ids, query_ids, mask)
        _, key_ids = gpu._ids(rules, 1, 2, 2, 1, 64)
        # Key 1 is put at the second place, where the order of the kernels leaves it.
        assert key_ids[0, 0] == ids[0][0]
        assert key_ids[0, 1] not in ids[0]
