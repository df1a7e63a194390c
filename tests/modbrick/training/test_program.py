"""A run's program: what it describes is what it runs on, and what does not divide is refused."""

from __future__ import annotations

import dataclasses

import chex
import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh

from modbrick.config.families import dense
from modbrick.decoder.decoder import Decoder
from modbrick.errors import InputError
from modbrick.execution import ExecutionConfig
from modbrick.optimizer import GroupConfig
from modbrick.parallel import AXES, MeshConfig, make_mesh
from modbrick.training.program import train_program
from modbrick.training.tasks.pretraining import Pretraining
from tests.compilation import max_traces
from tests.configs import tiny

pytestmark = pytest.mark.usefixtures("quick_compilation")
CONFIG = tiny.get_config()
DENSE = dense(vocabulary=257, width=16, layers=1, heads=2, feed_forward_width=16, dtype="float32")


def test_a_step_keeps_the_shapes_that_the_program_describes() -> None:
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    program = train_program(CONFIG, Pretraining(CONFIG), mesh)
    with jax.set_mesh(mesh):
        after, _ = jax.eval_shape(program.step, program.state, program.batch())
    for described in jax.tree.leaves(program.state):
        assert described.sharding.mesh == mesh
    chex.assert_trees_all_equal_shapes_and_dtypes(program.state, after)
    whole = program.parameters_of(after)
    shapes = jax.tree.map(lambda leaf: leaf.shape, whole)
    assert shapes == jax.tree.map(lambda leaf: leaf.shape, program.parameters)


def test_steps_after_the_first_compile_nothing() -> None:
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    execution = ExecutionConfig(attention="reference", dispatch="reference")
    config = dataclasses.replace(CONFIG, execution=execution, model=DENSE)
    program = train_program(config, Pretraining(config), mesh)
    with jax.set_mesh(mesh), max_traces(Decoder, "features", 1):
        state, batch = jax.tree.map(
            lambda leaf: jax.device_put(jnp.zeros(leaf.shape, leaf.dtype), leaf.sharding),
            (program.state, program.batch()),
        )
        for _ in range(3):
            state, _ = program.step(state, batch)
    assert state.step == 3


def test_a_batch_that_does_not_divide_is_refused_before_anything_is_compiled() -> None:
    training = dataclasses.replace(CONFIG.training, microbatches=4)
    mesh = AbstractMesh((2, 1, 1, 1, 1), AXES)
    config = dataclasses.replace(CONFIG, training=training)
    with pytest.raises(InputError, match=r"batch_size 4 in 4 training\.microbatches"):
        train_program(config, Pretraining(config), mesh)


def test_what_only_frozen_parameters_have_is_refused_where_nothing_is_frozen() -> None:
    mesh = AbstractMesh((1,) * len(AXES), AXES)
    training = dataclasses.replace(CONFIG.training, frozen_dtype="bfloat16")
    config = dataclasses.replace(CONFIG, training=training)
    with pytest.raises(InputError, match=r"frozen_dtype bfloat16 is for what is frozen, and noth"):
        train_program(config, Pretraining(config), mesh)
    groups = (GroupConfig(("layer.0",), 0.5), GroupConfig(("embedding",), 0.5))
    optimizer = dataclasses.replace(CONFIG.optimizer, groups=groups, frozen=("embedding",))
    config = dataclasses.replace(config, optimizer=optimizer)
    with pytest.raises(InputError, match=r"groups\[1\] \(embedding\) covers only what is frozen"):
        train_program(config, Pretraining(config), mesh)
