"""The train step: accumulation over microbatches, frozen parameters, determinism."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from modbrick.config import ModelConfig
from modbrick.config.families import moduleformer
from modbrick.decoder.functional import functional_decoder, parameter_table
from modbrick.execution import ExecutionConfig
from modbrick.objective import ObjectiveConfig
from modbrick.optimizer import Optimizer, OptimizerConfig
from modbrick.parameters import Partition
from modbrick.schema import from_mapping
from modbrick.training.state import TrainState, initial_state
from modbrick.training.step import draws, loss_function, train_step
from modbrick.training.tasks.pretraining import next_token_totals
from tests.compilation import QUICK

pytestmark = pytest.mark.usefixtures("quick_compilation")


def model(sample_top_k: int = 0) -> ModelConfig:
    return moduleformer(
        vocabulary=37,
        width=16,
        layers=2,
        heads=2,
        attention_width=8,
        feed_forward_width=12,
        attention_experts=3,
        feed_forward_experts=4,
        router_width=8,
        sample_top_k=sample_top_k,
        dtype="float32",
        expert_initialiser="normal",
    )


def batch(rows: int = 8, length: int = 11, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, 37, (rows, length + 1)).astype(np.int32)
    segments = np.sort(rng.integers(1, 4, (rows, length)), axis=1).astype(np.int32)
    segments[: rows // 2, -3:] = 0  # padding, unevenly over the rows
    return {
        "tokens": tokens[:, :-1],
        "targets": tokens[:, 1:],
        "segment_ids": segments,
        "positions": np.tile(np.arange(length, dtype=np.int32), (rows, 1)),
        "loss_mask": (segments != 0).astype(np.int32),
    }


# By their definitions, which compile in a third of the time of what users run.
PLAIN = ExecutionConfig(attention="reference", dispatch="reference")
OBJECTIVE = ObjectiveConfig(load_balancing=0.3, switch=0.2, router_z=0.1, concentration=0.05)


@functools.cache
def loss_and_gradient(microbatches: int) -> Any:
    loss = loss_function(next_token_totals, model(), PLAIN, OBJECTIVE, microbatches=microbatches)
    return jax.jit(jax.value_and_grad(loss, has_aux=True), compiler_options=QUICK)


@functools.cache
def initial() -> dict[str, np.ndarray]:
    """Random parameters of the model, the same whether its routers sample or not."""
    rng = np.random.default_rng(1)
    return {
        path: rng.normal(path.endswith("scale"), 0.1, leaf.shape).astype(np.float32)
        for path, leaf in functional_decoder(model()).table.abstract().items()
    }


def gradient(microbatches: int, data: dict[str, np.ndarray]) -> tuple[float, Any]:
    function = loss_and_gradient(microbatches)
    (value, _), gradients = function(initial(), data, jnp.int32(0), None)
    return float(value), gradients


@pytest.mark.parametrize("microbatches", [2, pytest.param(8, marks=pytest.mark.verify)])
def test_microbatches_give_the_gradient_of_the_whole_batch(microbatches: int) -> None:
    whole_value, whole = gradient(1, batch())
    value, parts = gradient(microbatches, batch())
    assert value == pytest.approx(whole_value, rel=1e-6)
    for path, want in whole.items():
        got = np.asarray(parts[path])
        assert np.isfinite(got).all()
        assert np.linalg.norm(got - want) <= 1e-5 * np.linalg.norm(want) + 1e-9, path


def test_router_losses_of_parts_would_give_another_gradient() -> None:
    """The property above is not trivial: mean gradients of separate halves differ.

    Rows of a half are there twice, which changes no mean: all batches have one shape.
    """
    data = batch()
    _, whole = gradient(1, data)
    twice = [{k: np.repeat(v[part::2], 2, axis=0) for k, v in data.items()} for part in range(2)]
    halves = [gradient(1, half)[1] for half in twice]
    path = "segments.0.feed_forward.router.output.weight"
    mean = sum(np.asarray(h[path]) for h in halves) / 2
    want = np.asarray(whole[path])
    assert np.linalg.norm(mean - want) > 1e-3 * np.linalg.norm(want)


@functools.cache
def compiled_step(frozen: tuple[str, ...], sample: int, execution: ExecutionConfig) -> Any:
    """The step, a function of the seed too, with what it needs of a model of its own."""
    config = model(sample)
    partition = Partition(parameter_table(config), frozen=frozen)
    optimizer_config = from_mapping(
        OptimizerConfig, {"learning_rate": 0.01, "schedule": {"kind": "constant"}}
    )
    optimizer = Optimizer(optimizer_config, partition, 100)
    loss = loss_function(next_token_totals, config, execution, OBJECTIVE)

    @functools.partial(jax.jit, donate_argnums=0, compiler_options=QUICK)
    def step(state: TrainState, data: dict[str, np.ndarray], seed: Any) -> Any:
        seed = seed if draws(config) else None
        return train_step(loss, optimizer, partition, seed=seed)(state, data)

    return step, partition, optimizer


def run(
    steps: int,
    *,
    seed: int = 0,
    frozen: tuple[str, ...] = (),
    sample: int = 0,
    execution: ExecutionConfig = PLAIN,
) -> Any:
    step, partition, optimizer = compiled_step(frozen, sample, execution)
    state = initial_state(jax.tree.map(jnp.array, initial()), partition, optimizer)
    losses = []
    for _ in range(steps):
        state, metrics = step(state, batch(), seed)
        losses.append(float(metrics.parts["next_token"]))
    return partition.join(state.trainable, state.frozen), losses, state


# One program for most of what follows: its routers sample, and some parameters do not move.
FROZEN = ("layer.1.feed_forward.expert.2", "layer.*.attention.router", "embedding")
SAMPLED: Any = {"sample": 1, "frozen": FROZEN}


@pytest.mark.parametrize(
    "options",
    [
        SAMPLED,
        pytest.param({}, marks=pytest.mark.verify),
        pytest.param({"execution": ExecutionConfig()}, marks=pytest.mark.verify),
    ],
    ids=["sampled", "plain", "as users run it"],
)
def test_learns_a_batch_by_heart(options: Any) -> None:
    _, losses, state = run(40, **options)
    assert losses[-1] < losses[0] - 0.5
    assert int(state.step) == 40


def test_sampled_routing_is_a_function_of_seed_and_step() -> None:
    first, losses, _ = run(3, **SAMPLED)
    again, losses_again, _ = run(3, **SAMPLED)
    other, losses_other, _ = run(3, **SAMPLED, seed=1)
    assert losses == losses_again
    assert losses[1:] != losses_other[1:]
    for path, value in first.items():
        np.testing.assert_array_equal(value, again[path])
    assert any((np.asarray(first[p]) != np.asarray(other[p])).any() for p in first)


def test_frozen_bricks_do_not_move_and_all_others_do() -> None:
    start = initial()
    trained, _, state = run(3, **SAMPLED)
    for path, value in trained.items():
        moved = np.asarray(value) != np.asarray(start[path])
        if path == "embedding" or "attention.router" in path:
            assert not moved.any(), path
        elif path == "segments.0.feed_forward.up.weight":
            assert not moved[1, 2].any()
            assert moved[0].any(axis=(1, 2)).all()
            assert moved[1, [0, 1, 3]].any(axis=(1, 2)).all()
        else:
            assert moved.any(), path
    assert "embedding" not in state.trainable
