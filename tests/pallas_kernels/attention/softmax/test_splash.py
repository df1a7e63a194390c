"""The kernel that comes with jax, interpreted and lowered, behind this operation's arguments."""

from __future__ import annotations

import dataclasses
import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from pallas_kernels.attention.softmax import splash
from pallas_kernels.compile_report import compile_for, lower_for_tpu, tpu_devices
from pallas_kernels.softmax_attention import Case, softmax_attention
from tests.contracts.containment import POISONS, assert_contained
from tests.contracts.softmax_attention import CASES, arrays_of, assert_close, call, exact
from tests.contracts.sweep import sweep


@pytest.fixture
def _interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    # In place of `force_tpu_interpret_mode`, which does not know the batched grid of vmap.
    interpreted = functools.partial(splash.make_splash_mha, interpret=True)
    monkeypatch.setattr(splash, "make_splash_mha", interpreted)


@pytest.mark.usefixtures("_interpreted")
@sweep("name", CASES, ["all_masks", "some_see_nothing"])
def test_agrees_with_float64(name: str) -> None:
    shape, options = CASES[name]
    found = call("splash", arrays_of(*shape, dtype=jnp.bfloat16), options, jnp.bfloat16)
    assert_close(found, exact(name, jnp.bfloat16), 1e-2)
    if name == "some_see_nothing":
        assert (found[0][:, :20] == 0).all()
        assert (found[1][:, :20] == 0).all()


@pytest.mark.verify
@pytest.mark.usefixtures("_interpreted")
@pytest.mark.parametrize("rules", ["", "segments", "window"])
def test_what_is_not_finite_reaches_what_sees_it(rules: str) -> None:
    for name in POISONS:
        assert_contained("softmax alone", "splash", name, rules=rules, dtype=jnp.bfloat16)


def _gradients(**options: Any) -> Any:
    def run(query: Any, key: Any, value: Any, ids: Any = None) -> Any:
        masks = {} if ids is None else {"query_segment_ids": ids, "key_segment_ids": ids}
        attend = functools.partial(softmax_attention, implementation="splash", **options, **masks)
        output, pull = jax.vjp(attend, query, key, value)
        return output, pull(output)

    return run


def _avals(length: int, width: int, *, packed: bool = False) -> list[jax.ShapeDtypeStruct]:
    shapes = [(2, length, heads, width) for heads in (4, 2, 2)]
    arrays = [jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in shapes]
    return arrays + [jax.ShapeDtypeStruct((2, length), jnp.int32)] * packed


@pytest.mark.parametrize(
    ("avals", "options", "segmented"),
    [
        (_avals(1024, 128), {}, ""),
        (_avals(1024, 128), {"window": 99}, ""),
        (_avals(1000, 64, packed=True), {"window": 99}, "_segmented"),
        (_avals(130, 20), {"causal": False}, "_segmented"),
    ],
    ids=["causal", "window", "packed", "odd"],
)
def test_lowers_for_a_tpu(avals: Any, options: dict[str, Any], segmented: str) -> None:
    text = lower_for_tpu(_gradients(**options), *avals)
    phases = (("fwd", "residuals"), ("dq", "no_residuals"), ("dkv", "no_residuals"))
    kernels = {f"splash_mha_{phase}{segmented}_{residuals}" for phase, residuals in phases}
    assert set(re.findall(r'kernel_name = "(\w+)"', text)) == kernels


@pytest.mark.verify
def test_compiles_for_a_tpu() -> None:
    device = tpu_devices("v5p:2x2x1")[0]
    memory = compile_for(
        device, _gradients(window=99), *_avals(1000, 64, packed=True)
    ).memory_analysis()
    assert memory is not None


def test_what_cannot_run_says_why() -> None:
    array = jax.ShapeDtypeStruct((1, 256, 2, 64), jnp.bfloat16)
    case = Case(array, array, array)
    assert splash.unsupported(case, None) is splash.unsupported(case, "tpu") is None
    assert "for TPUs" in (splash.unsupported(case, "cpu") or "")
    traced = dataclasses.replace(case, offset=None)
    assert "query_offset is an array" in (splash.unsupported(traced, None) or "")
    wide = jax.ShapeDtypeStruct((1, 256, 2, 64), jnp.float32)
    assert "float32" in (splash.unsupported(Case(wide, wide, wide), None) or "")
