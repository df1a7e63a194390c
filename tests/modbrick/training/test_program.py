"""A run's program: what it describes is what it runs on, and what does not divide is refused."""

from __future__ import annotations

import dataclasses

import jax
import pytest
from jax.sharding import AbstractMesh

from modbrick.errors import InputError
from modbrick.parallel import AXES, MeshConfig, make_mesh
from modbrick.training.program import train_program
from modbrick.training.tasks.pretraining import Pretraining
from tests.configs import tiny

CONFIG = tiny.get_config()


def test_a_step_keeps_the_shapes_that_the_program_describes() -> None:
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    program = train_program(CONFIG, Pretraining(CONFIG), mesh)
    with jax.set_mesh(mesh):
        after, _ = jax.eval_shape(program.step, program.state, program.batch())
    for described, array in zip(
        jax.tree.leaves(program.state), jax.tree.leaves(after), strict=True
    ):
        assert (described.shape, described.dtype) == (array.shape, array.dtype)
        assert described.sharding.mesh == mesh
    whole = program.parameters_of(after)
    shapes = jax.tree.map(lambda leaf: leaf.shape, whole)
    assert shapes == jax.tree.map(lambda leaf: leaf.shape, program.parameters)


def test_a_batch_that_does_not_divide_is_refused_before_anything_is_compiled() -> None:
    training = dataclasses.replace(CONFIG.training, microbatches=4)
    mesh = AbstractMesh((2, 1, 1, 1, 1), AXES)
    config = dataclasses.replace(CONFIG, training=training)
    with pytest.raises(InputError, match=r"batch_size 4 in 4 training\.microbatches"):
        train_program(config, Pretraining(config), mesh)
