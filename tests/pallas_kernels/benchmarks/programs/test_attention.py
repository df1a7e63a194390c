from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.benchmarks.numerics import attention_inputs
from pallas_kernels.benchmarks.programs import attention
from pallas_kernels.benchmarks.timing import relative_error


def test_ours_are_the_same_by_every_name() -> None:
    arguments = attention_inputs(0, 1, 64, 2, 16, jnp.float32)
    run = attention.forward_and_backward
    right = jax.jit(run(attention.ours("reference")))(*arguments)
    got = jax.jit(run(attention.contender("xla")))(*arguments)
    assert relative_error(got, right) < 1e-5


@pytest.mark.verify
def test_softmax_peers_are_causal_and_agree() -> None:
    query, key, value, _ = attention_inputs(0, 1, 128, 1, 128, jnp.float32)
    right = attention.softmax("xla")(query, key, value)
    with pltpu.force_tpu_interpret_mode(pltpu.InterpretParams()):
        got = jax.jit(attention.splash)(query, key, value)
    assert relative_error(got, right) < 1e-2
    later = value.at[:, 64:].set(0.0)
    changed = attention.softmax("xla")(query, key, later)
    np.testing.assert_array_equal(right[:, :64], changed[:, :64])


def test_programs_have_the_shapes_of_their_case() -> None:
    program = attention.attention_program(
        "s4096", "xla", "forward_backward", {"length": 128, "heads": 1}
    )
    output, gradients = jax.eval_shape(program.function, *program.arguments)
    assert output.shape == gradients[0].shape == (1, 128, 1, 128)
