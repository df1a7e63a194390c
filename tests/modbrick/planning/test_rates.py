from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from modbrick.bricks import BrickConfig, LoRA
from modbrick.config import SegmentConfig
from modbrick.errors import InputError
from modbrick.planning import plan as planning
from modbrick.planning import rates, time
from modbrick.planning.kernel_shapes import kernel_shapes
from modbrick.planning.plan import make_plan, named
from modbrick.planning.rates import (
    FURTHEST,
    KNOWN_RATES,
    Rate,
    keep_rate,
    nearest_rate,
    read_rates,
    unmeasured,
)
from modbrick.planning.time import kernel_rates, kernel_seconds, useful_flops
from modbrick.planning.topology import EXAMPLES, find_topology
from tests.modbrick.planning.small_run import small_run
from tools.presets import PRESETS, TOPOLOGIES, preset

ROOT = Path(__file__).resolve().parents[3]
SHAPE = {"width": 1024, "hidden": 2048, "experts": 32, "top_k": 2, "gated": 0}


@pytest.mark.parametrize("topology", TOPOLOGIES)
@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_has_its_rates(name, topology):
    config = named(preset(ROOT / "configs", name, topology))
    for part, rate in kernel_rates(config, topology.partition(":")[0]).items():
        shape = kernel_shapes(config)[part]
        assert rate.part == part
        for size, known in zip(shape.values(), rate.shape.values(), strict=True):
            assert size == known == 0 or 1 / FURTHEST <= size / known <= FURTHEST


def test_topologies_that_are_named_can_be_planned():
    assert {name.partition(":")[0] for name in EXAMPLES} == set(read_rates(KNOWN_RATES))


@pytest.fixture
def one_rate(monkeypatch):
    rate = Rate("feed_forward", SHAPE, 0.5, 0.25, {})
    monkeypatch.setattr(rates, "known_rates", lambda generation: (rate,))
    return rate


@pytest.mark.parametrize(
    "changed", [{"gated": 1}, {"width": 4096}, {"hidden": 14336}, {"experts": 8}]
)
def test_a_rate_of_another_shape_is_refused(one_rate, changed):
    with pytest.raises(InputError, match=r"nor near it .*plan_pod\.py --rates") as error:
        nearest_rate("v5p", "feed_forward", {**SHAPE, **changed})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("changed", [{}, {"top_k": 4}, {"width": 768, "experts": 16}])
def test_a_near_rate_serves(one_rate, changed):
    assert nearest_rate("v5p", "feed_forward", {**SHAPE, **changed}) == one_rate


def test_the_kernels_of_experts_compute_no_keys_and_values(monkeypatch):
    """All experts share them: XLA's products, which the program counts by itself."""
    monkeypatch.setattr(
        time, "nearest_rate", lambda _, part, shape: Rate(part, dict(shape), 0.5, 0.5, {})
    )
    run = named(preset(ROOT / "configs", "jetmoe_8b", "v5p:4x4x4"))
    layer = run.model.layers[0]
    few = dataclasses.replace(
        layer, attention=dataclasses.replace(layer.attention, key_value_heads=1)
    )
    segments = (SegmentConfig(few, len(run.model.layers)),)
    less = dataclasses.replace(run, model=dataclasses.replace(run.model, segments=segments))
    topology = find_topology("v5p:4x4x4")
    assert kernel_seconds(less, topology)["projections"] == pytest.approx(
        kernel_seconds(run, topology)["projections"]
    )
    assert useful_flops(less, 64) < useful_flops(run, 64)


def test_beneath_bricks_weights_have_no_gradients(monkeypatch):
    monkeypatch.setattr(
        time, "nearest_rate", lambda _, part, shape: Rate(part, dict(shape), 0.5, 0.25, {})
    )
    whole = named(preset(ROOT / "configs", "molm_700m_8b", "v5p:4x4x4"))
    bricks = {"de": BrickConfig(("layer.*.attention.query",), LoRA(rank=8))}
    topology = find_topology("v5p:4x4x4")
    all_trained, frozen = (
        kernel_seconds(run, topology) for run in (whole, dataclasses.replace(whole, bricks=bricks))
    )
    # Forward once at a half of the peak, backward twice or once at a quarter.
    assert whole.execution.rematerialisation == "kernels"
    assert frozen["feed_forward"] == pytest.approx(0.6 * all_trained["feed_forward"])
    assert frozen["attention"] == all_trained["attention"]


def test_a_missing_rate_is_told_before_anything_is_compiled(monkeypatch):
    monkeypatch.setattr(planning, "compile_step", lambda *_, **__: pytest.fail("compiled"))
    run = small_run(attention=None, dispatch=None)
    with pytest.raises(InputError, match="on tpu7x are not measured: known are v5e, v5p, v6e"):
        make_plan(run, find_topology("tpu7x:2x2x1"))
    with pytest.raises(InputError, match=r"width 128, .* nor near it"):
        make_plan(run, find_topology("v5p:2x2x1"))


def test_measured_rates_are_kept_and_not_asked_for_again(tmp_path):
    file = tmp_path / KNOWN_RATES.name
    file.write_text('{"generations": {}}')
    kept = read_rates(file)
    near, far = {**SHAPE, "top_k": 4}, {**SHAPE, "gated": 1}
    wanted = [("v5p", "feed_forward", shape) for shape in (SHAPE, near, SHAPE, far)]
    # What no other rate stands in for comes first, and nothing twice.
    assert [shape for _, _, shape in unmeasured(kept, wanted)] == [SHAPE, far, near]
    rate = Rate("feed_forward", SHAPE, 0.5, 0.25, {"jax": "1"})
    keep_rate(file, kept, "v5p", rate)
    assert read_rates(file) == {"v5p": [rate]}
    assert [shape for _, _, shape in unmeasured(read_rates(file), wanted)] == [far, near]


@pytest.mark.parametrize("share", [0.0, 1.2])
def test_a_share_is_one(share):
    with pytest.raises(InputError, match="rate forward"):
        Rate("attention", {}, share, 0.5, {})
