"""State and activations in the host's memory: the same numbers, less on the devices."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from modbrick.checkpoints.leaves import checksums
from modbrick.config import ModelConfig
from modbrick.config.families import dense, moduleformer
from modbrick.data import DataConfig
from modbrick.decoder.functional import functional_decoder
from modbrick.errors import InputError
from modbrick.execution import ExecutionConfig
from modbrick.optimizer import OptimizerConfig
from modbrick.parallel import MeshConfig, make_mesh
from modbrick.schema import from_mapping
from modbrick.training.offload import check_host_memory
from modbrick.training.program import train_program
from modbrick.training.run_config import RunConfig, TrainingConfig
from modbrick.training.state import TrainState, initial_state
from modbrick.training.tasks.pretraining import Pretraining
from pallas_kernels.compile_report.compilation import LIBTPU_ENVIRONMENT
from tests.modbrick.training.compiled_memory import (
    DEVICES,
    LAYERS,
    LENGTH,
    MATRICES,
    ROWS,
    WIDTH,
)

pytestmark = pytest.mark.usefixtures("quick_compilation")

ROOT = Path(__file__).resolve().parents[3]
DENSE = dense(vocabulary=32, width=8, layers=2, heads=1, feed_forward_width=12, dtype="float32")
EXPERTS = moduleformer(
    vocabulary=32,
    width=8,
    layers=2,
    heads=1,
    attention_width=8,
    feed_forward_width=12,
    attention_experts=2,
    feed_forward_experts=4,
    router_width=8,
    dtype="float32",
)


def state_after_two_steps(model: ModelConfig, **choices: str) -> TrainState:
    execution = {"dispatch": "reference", "attention": "reference", "rematerialisation": "full"}
    run = RunConfig(
        model=model,
        data=DataConfig(path="", sequence_length=6, batch_size=2),
        training=TrainingConfig(steps=10),
        optimizer=OptimizerConfig(learning_rate=0.1),
        execution=from_mapping(ExecutionConfig, execution | choices),
    )
    mesh = make_mesh(run.mesh, jax.devices()[:1])
    tokens = np.random.default_rng(0).integers(0, 32, (2, 6)).astype(np.int32)
    ones = np.ones_like(tokens)
    batch = {
        "tokens": tokens,
        "targets": np.roll(tokens, -1, axis=1),
        "segment_ids": ones,
        "positions": np.tile(np.arange(6, dtype=np.int32), (2, 1)),
        "loss_mask": ones,
    }
    with jax.set_mesh(mesh):
        program = train_program(run, Pretraining(run), mesh)
        shardings = jax.tree.map(lambda leaf: leaf.sharding, program.state)
        random = np.random.default_rng(1)
        parameters = {
            path: jnp.asarray(random.normal(0.0, 0.3, leaf.shape), jnp.float32)
            for path, leaf in functional_decoder(model).table.abstract().items()
        }
        state = initial_state(parameters, program.partition, program.optimizer, shardings)
        step: Any = program.step
        options = {"xla_backend_optimization_level": 0}
        compiled = step.lower(program.state, program.batch()).compile(compiler_options=options)
        placed = jax.device_put(batch, {k: v.sharding for k, v in program.batch().items()})
        for _ in range(2):
            state, _ = compiled(state, placed)
        return state


def flat(tree: Any) -> dict[str, jax.Array]:
    return {str(index): leaf for index, leaf in enumerate(jax.tree.leaves(tree))}


@pytest.mark.parametrize(
    "model", [DENSE, pytest.param(EXPERTS, marks=pytest.mark.verify)], ids=["dense", "experts"]
)
def test_values_do_not_depend_on_where_things_wait(model: ModelConfig) -> None:
    expected = state_after_two_steps(model)
    actual = state_after_two_steps(model, activation_memory="host", optimizer_memory="host")
    for one, other in zip(jax.tree.leaves(expected), jax.tree.leaves(actual), strict=True):
        np.testing.assert_array_equal(np.asarray(other), np.asarray(one))
    kinds = {leaf.sharding.memory_kind for leaf in jax.tree.leaves(actual.optimizer) if leaf.ndim}
    assert kinds == {"pinned_host"}, "moments lie with the host"
    assert checksums(flat(actual.optimizer)) == checksums(flat(expected.optimizer))
    for tree in (actual.trainable, expected.optimizer):
        assert {leaf.sharding.memory_kind for leaf in jax.tree.leaves(tree)} == {"device"}


@pytest.mark.parametrize("option", ["activation_memory", "optimizer_memory"])
def test_devices_that_cannot_reach_the_memory_of_the_host_are_refused(option: str) -> None:
    choices = {"rematerialisation": "full", option: "host"}
    execution = from_mapping(ExecutionConfig, choices)
    device = mock.Mock(device_kind="Abacus")
    device.addressable_memories.return_value = [mock.Mock(kind="device")]
    mesh = mock.Mock(devices=np.array([device]))
    with pytest.raises(InputError, match=rf"^execution\.{option} is host, but Abacus has no .*"):
        check_host_memory(execution, mesh)
    check_host_memory(ExecutionConfig(), mesh)
    check_host_memory(execution, make_mesh(MeshConfig(), jax.devices()[:1]))


@pytest.mark.verify
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu")
def test_compiled_for_a_tpu_the_memory_of_the_host_is_used() -> None:
    choices = ("activations:device", "activations:host", "optimizer:device", "optimizer:host")
    run = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("compiled_memory.py")), *choices],
        env=os.environ | LIBTPU_ENVIRONMENT | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    kept, moved, plain, optimizer = map(json.loads, run.stdout.splitlines())
    assert kept["host_temp"] == plain["host_temp"] == plain["host_argument"] == 0
    # The stream before each layer, bfloat16, of a device's own rows.
    assert moved["host_temp"] >= LAYERS * ROWS // DEVICES * LENGTH * WIDTH * 2
    # Two moments of float32 of every value that fsdp divides.
    moments = 2 * 4 * MATRICES // DEVICES
    assert optimizer["host_argument"] >= moments
    assert plain["argument"] - optimizer["argument"] >= moments
