from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from pallas_kernels.benchmarks.cases import ExpertCase
from pallas_kernels.benchmarks.numerics import expert_inputs
from pallas_kernels.benchmarks.programs import experts
from pallas_kernels.benchmarks.timing import relative_error
from tests.contracts.sweep import sweep

SMALL = ExpertCase("small", "feed_forward", 32, 2, 16, 24, 4)


@sweep("kind", ["feed_forward", "projection"], ["feed_forward"])
def test_contenders_compute_the_same(kind: str) -> None:
    case = dataclasses.replace(SMALL, kind=kind)
    arguments = expert_inputs(case, 0, jnp.float32)
    runs = {
        name: jax.jit(experts.forward_and_backward(layer))
        for name, layer in (
            ("reference", experts.ours("reference", kind)),
            ("xla", experts.contender("xla", kind)),
            ("ragged_dot", experts.contender("ragged_dot", kind)),
        )
    }
    right = runs.pop("reference")(*arguments)
    for name, run in runs.items():
        assert relative_error(run(*arguments), right) < 1e-5, name


@pytest.mark.parametrize("direction", ["forward", "forward_backward"])
def test_programs_hold_concrete_plans_and_shapes_of_the_rest(direction: str) -> None:
    overrides = {"tokens": 64, "width": 16, "hidden": 16}
    program = experts.expert_program("molm", "ragged_dot", direction, overrides)
    leaves = jax.tree.leaves(program.arguments)
    concrete = [leaf for leaf in leaves if not isinstance(leaf, jax.ShapeDtypeStruct)]
    assert len(concrete) == 4
    assert all(jnp.issubdtype(leaf.dtype, jnp.integer) for leaf in concrete)
    shapes = jax.eval_shape(program.function, *program.arguments)
    output = shapes if direction == "forward" else shapes[0]
    assert output.shape == (64, 16)
