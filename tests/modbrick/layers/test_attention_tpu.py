"""A sparse model over the attention kernels for TPUs: the same numbers, and a step that lowers."""

from __future__ import annotations

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.experimental.pallas import tpu as pltpu

from modbrick.execution import ExecutionConfig
from modbrick.objective import ObjectiveConfig
from modbrick.training.step import loss_function
from modbrick.training.tasks.pretraining import next_token_totals
from pallas_kernels.attention.shared.block_sizes import BlockSizes
from pallas_kernels.attention.stickbreaking.tpu.block_sizes import TpuBlockSizes, compiling_for
from pallas_kernels.compile_report import lower_for_tpu
from tests.modbrick.layers.tiny import (
    SPARSE,
    model_config,
    model_of,
    relative_error,
    tokens_of,
)

pytestmark = pytest.mark.usefixtures("quick_compilation")
LENGTH = 40
SMALL = TpuBlockSizes(forward=BlockSizes(128, 128), backward=BlockSizes(128, 128))


def _batch() -> dict[str, jax.Array]:
    """Two packed documents in a row, and padding behind them."""
    tokens = tokens_of(1, LENGTH + 1)
    segment_ids = np.repeat([1, 2, 0], [14, 20, LENGTH - 34])[None]
    positions = np.concatenate([np.arange(14), np.arange(20), np.zeros(LENGTH - 34)])[None]
    return {
        "tokens": jnp.asarray(tokens[:, :-1]),
        "targets": jnp.asarray(tokens[:, 1:]),
        "segment_ids": jnp.asarray(segment_ids, jnp.int32),
        "positions": jnp.asarray(positions, jnp.int32),
        "loss_mask": jnp.asarray(segment_ids > 0),
    }


def _value_and_gradients(attention: str, **changes: Any) -> Any:
    config = model_config(SPARSE, **changes)
    # The definition of dispatch compiles in no time.
    execution = ExecutionConfig(attention=attention, dispatch="reference")
    loss = loss_function(next_token_totals, config, execution, ObjectiveConfig())

    def run(parameters: Any, batch: Any) -> Any:
        return jax.value_and_grad(lambda p: loss(p, batch, jnp.int32(0), None)[0])(parameters)

    return run


def _parameters(**changes: Any) -> Any:
    return nnx.as_pure(nnx.split(model_of(model_config(SPARSE, **changes)))[1])


@pytest.mark.verify  # simulated kernels take seconds to compile; they have tests of their own
def test_loss_and_gradients_are_those_of_the_plain_attention():
    parameters, batch = _parameters(), _batch()
    plain = jax.jit(_value_and_gradients("reference"))
    value, gradients = plain(parameters, batch)
    params = pltpu.InterpretParams(dma_execution_mode="eager")
    with pltpu.force_tpu_interpret_mode(params), compiling_for(blocks=SMALL):
        ours, our_gradients = jax.jit(_value_and_gradients("tpu"))(parameters, batch)
    np.testing.assert_allclose(ours, value, rtol=1e-6)
    for (path, expected), actual in zip(
        jax.tree_util.tree_leaves_with_path(gradients),
        jax.tree.leaves(our_gradients),
        strict=True,
    ):
        assert relative_error(actual, expected) <= 2e-5, jax.tree_util.keystr(path)


def test_the_gradient_of_the_model_lowers_for_a_tpu():
    parameters = jax.eval_shape(lambda: _parameters(dtype="bfloat16"))
    batch = jax.eval_shape(_batch)
    with compiling_for(blocks=SMALL):
        text = lower_for_tpu(_value_and_gradients("tpu", dtype="bfloat16"), parameters, batch)
    kernels = set(re.findall(r'kernel_name = "(\w+)"', text))
    assert {"stickbreaking_attention_forward", "stickbreaking_attention_backward"} <= kernels
