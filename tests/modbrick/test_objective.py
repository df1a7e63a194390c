"""The objective: extremes and additivity of router losses."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from modbrick.errors import InputError
from modbrick.layers.router import RouterStatistics
from modbrick.objective import (
    ROUTER_LOSSES,
    CoefficientConfig,
    ObjectiveConfig,
    Totals,
    objective,
)
from modbrick.schema import from_mapping


def statistics_of(probabilities: np.ndarray, chosen: np.ndarray) -> RouterStatistics:
    """Totals of tokens with probabilities [T, E] and choices [T, K], by direct formulas."""
    experts = probabilities.shape[1]
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.where(probabilities > 0, np.log(probabilities), 0.0)
    one_hot = np.eye(experts)[chosen]
    gates = np.take_along_axis(probabilities, chosen, axis=1)
    return RouterStatistics(
        tokens=jnp.float32(len(probabilities)),
        probability=jnp.asarray(probabilities.sum(0), jnp.float32),
        choices=jnp.asarray(one_hot.sum((0, 1)), jnp.float32),
        gates=jnp.asarray((one_hot * gates[..., None]).sum((0, 1)), jnp.float32),
        entropy=jnp.float32(-(probabilities * logs).sum()),
        squared_log_normaliser=jnp.float32(4.0 * len(probabilities)),
        dropped=jnp.float32(0.0),
    )


@pytest.mark.parametrize("experts", [1, 2, 8, 32])
def test_uniform_load_with_one_hot_gates_is_the_minimum_of_load_balancing(experts: int) -> None:
    chosen = np.arange(4 * experts)[:, None] % experts
    statistics = statistics_of(np.eye(experts)[chosen[:, 0]], chosen)
    loss = float(ROUTER_LOSSES["load_balancing"](statistics))
    assert loss == pytest.approx(-np.log(experts), abs=1e-6)


def test_extremes_of_the_losses() -> None:
    experts, tokens = 8, 16
    uniform = statistics_of(np.full((tokens, experts), 1 / experts), np.zeros((tokens, 1), int))
    one = statistics_of(np.eye(experts)[np.zeros(tokens, int)], np.zeros((tokens, 1), int))
    assert float(ROUTER_LOSSES["load_balancing"](uniform)) == pytest.approx(0.0, abs=1e-6)
    assert float(ROUTER_LOSSES["load_balancing"](one)) == pytest.approx(0.0, abs=1e-6)
    assert float(ROUTER_LOSSES["concentration"](uniform)) == pytest.approx(
        np.log(experts), abs=1e-6
    )
    assert float(ROUTER_LOSSES["concentration"](one)) == pytest.approx(0.0, abs=1e-6)
    assert float(ROUTER_LOSSES["switch"](one)) == pytest.approx(experts, abs=1e-5)
    balanced = statistics_of(
        np.full((tokens, experts), 1 / experts), np.arange(tokens)[:, None] % experts
    )
    assert float(ROUTER_LOSSES["switch"](balanced)) == pytest.approx(1.0, abs=1e-6)
    assert float(ROUTER_LOSSES["router_z"](one)) == pytest.approx(4.0, abs=1e-6)


def test_gradients_are_finite_where_an_expert_has_no_mass() -> None:
    one = statistics_of(np.eye(4)[np.zeros(8, int)], np.zeros((8, 1), int))
    for loss in ROUTER_LOSSES.values():
        gradients = jax.grad(lambda s, loss=loss: loss(s).sum())(one)
        assert all(np.isfinite(np.asarray(g)).all() for g in jax.tree.leaves(gradients))


def test_losses_are_those_of_the_summed_batch_not_the_mean_of_its_parts() -> None:
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet(np.ones(6), 40)
    chosen = np.argsort(-probabilities, axis=1)[:, :2]
    whole = statistics_of(probabilities, chosen)
    parts = [statistics_of(probabilities[a:b], chosen[a:b]) for a, b in ((0, 7), (7, 40))]
    summed = jax.tree.map(jnp.add, *parts)
    for name, loss in ROUTER_LOSSES.items():
        np.testing.assert_allclose(loss(summed), loss(whole), rtol=1e-5, atol=1e-6, err_msg=name)
    mean = np.mean([float(ROUTER_LOSSES["load_balancing"](p)) for p in parts])
    assert abs(mean - float(ROUTER_LOSSES["load_balancing"](whole))) > 1e-3


def test_objective_adds_weighted_router_losses_summed_over_layers() -> None:
    rng = np.random.default_rng(1)
    layers = [
        statistics_of(p, np.argsort(-p, axis=1)[:, :2]) for p in rng.dirichlet(np.ones(5), (3, 20))
    ]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *layers)
    totals = Totals(jnp.float32(30.0), jnp.float32(20.0), {"router": stacked})
    value, parts = objective(totals, {"switch": jnp.float32(0.5), "router_z": jnp.float32(0.1)})
    switch = sum(float(ROUTER_LOSSES["switch"](s)) for s in layers)
    assert float(parts["switch"]) == pytest.approx(switch, rel=1e-6)
    assert float(value) == pytest.approx(1.5 + 0.5 * switch + 0.1 * 12.0, rel=1e-6)


def test_the_pooled_switch_loss_is_over_all_layers_at_once() -> None:
    rng = np.random.default_rng(2)
    probabilities = rng.dirichlet(np.ones(5), (3, 20))
    chosen = np.argsort(-probabilities, axis=2)[..., :2]
    layers = [statistics_of(p, c) for p, c in zip(probabilities, chosen, strict=True)]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *layers[:2])
    totals = Totals(jnp.float32(0.0), jnp.float32(1.0), {"one": stacked, "other": layers[2]})
    value, parts = objective(totals, {"pooled_switch": jnp.float32(0.5)})
    per_token = np.eye(5)[chosen.reshape(-1, 2)].sum(1).mean(0)
    wanted = 5 * (per_token * probabilities.reshape(-1, 5).mean(0)).sum()
    assert float(parts["pooled_switch"]) == pytest.approx(wanted, rel=1e-5)
    assert float(value) == pytest.approx(0.5 * wanted, rel=1e-5)
    separately = sum(float(ROUTER_LOSSES["switch"](s)) for s in layers)
    assert abs(wanted - 2 * separately / 3) > 1e-3
    larger = statistics_of(np.eye(6), np.arange(6)[:, None])
    unequal = dataclasses.replace(totals, router_statistics={"one": layers[0], "other": larger})
    with pytest.raises(InputError, match=r"equal banks, got \[5, 6\] experts"):
        objective(unequal, {"pooled_switch": jnp.float32(0.5)})
    empty = dataclasses.replace(totals, router_statistics={})
    assert float(objective(empty, {"pooled_switch": jnp.float32(1.0)})[0]) == 0.0


def test_a_batch_without_targets_has_zero_loss() -> None:
    value, _ = objective(Totals(jnp.float32(0.0), jnp.float32(0.0), {}), {})
    assert float(value) == 0.0


def test_coefficients_are_schedules() -> None:
    config = from_mapping(
        ObjectiveConfig,
        {
            "load_balancing": 0.01,
            "concentration": {"start": 0.0, "end": 1.0, "first_step": 10, "last_step": 30},
        },
    )
    schedules = config.schedules()
    assert set(schedules) == {"load_balancing", "concentration"}
    assert float(schedules["load_balancing"](7)) == pytest.approx(0.01)
    steps = [0, 10, 20, 30, 99]
    values = [float(schedules["concentration"](s)) for s in steps]
    np.testing.assert_allclose(values, [0.0, 0.0, 0.5, 1.0, 1.0])
    with pytest.raises(InputError, match="first_step"):
        CoefficientConfig(0.0, 1.0, 5, 3)
