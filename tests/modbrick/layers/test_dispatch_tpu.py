"""A sparse model over the kernels for TPUs: the same numbers, and a train step that lowers."""

from __future__ import annotations

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.experimental.pallas import tpu as pltpu

from modbrick.config import AttentionConfig, LayerConfig
from modbrick.execution import ExecutionConfig
from modbrick.objective import ObjectiveConfig
from modbrick.training.step import loss_function
from modbrick.training.tasks.pretraining import next_token_totals
from pallas_kernels.compile_report import lower_for_tpu
from pallas_kernels.grouped_matmul.tpu.block_sizes import KERNELS, BlockSizes, compiling_for
from tests.modbrick.layers.tiny import SPARSE, model_config, model_of, relative_error, tokens_of

pytestmark = pytest.mark.usefixtures("quick_compilation")
BATCH, LENGTH = 1, 6
SMALL = dict.fromkeys(KERNELS, BlockSizes(32, 1024, 128))


def _batch(length: int) -> dict[str, jax.Array]:
    tokens = tokens_of(BATCH, length + 1)
    shape = (BATCH, length)
    return {
        "tokens": jnp.asarray(tokens[:, :-1]),
        "targets": jnp.asarray(tokens[:, 1:]),
        "segment_ids": jnp.ones(shape, jnp.int32),
        "positions": jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32), shape),
        "loss_mask": jnp.ones(shape, bool),
    }


def _value_and_gradients(layer: LayerConfig, dispatch: str, **changes: Any) -> Any:
    config = model_config(layer, **changes)
    # The definition of attention compiles in no time.
    execution = ExecutionConfig(attention="reference", dispatch=dispatch)
    loss = loss_function(next_token_totals, config, execution, ObjectiveConfig())

    def run(parameters: Any, batch: Any) -> Any:
        return jax.value_and_grad(lambda p: loss(p, batch, jnp.int32(0), None)[0])(parameters)

    return run


def _parameters(layer: LayerConfig, **changes: Any) -> Any:
    return nnx.as_pure(nnx.split(model_of(model_config(layer, **changes)))[1])


# Simulated kernels take seconds each to compile.
@pytest.mark.parametrize(
    "layer",
    [
        pytest.param(LayerConfig(AttentionConfig(2, 8), SPARSE.feed_forward), id="feed_forward"),
        pytest.param(SPARSE, id="both", marks=pytest.mark.verify),
    ],
)
def test_loss_and_gradients_are_those_of_the_plain_dispatch(layer):
    parameters, batch = _parameters(layer), _batch(LENGTH)
    value, gradients = jax.jit(_value_and_gradients(layer, "reference"))(parameters, batch)
    params = pltpu.InterpretParams(dma_execution_mode="eager")
    with pltpu.force_tpu_interpret_mode(params), compiling_for("v5p", SMALL):
        ours, our_gradients = jax.jit(_value_and_gradients(layer, "tpu"))(parameters, batch)
    np.testing.assert_allclose(ours, value, rtol=1e-6)
    for (path, expected), actual in zip(
        jax.tree_util.tree_leaves_with_path(gradients),
        jax.tree.leaves(our_gradients),
        strict=True,
    ):
        assert relative_error(actual, expected) <= 2e-5, jax.tree_util.keystr(path)


def test_the_gradient_of_the_model_lowers_for_a_tpu():
    parameters = jax.eval_shape(lambda: _parameters(SPARSE, dtype="bfloat16"))
    batch = jax.eval_shape(lambda: _batch(LENGTH))
    with compiling_for(blocks=SMALL):
        run = _value_and_gradients(SPARSE, "tpu", dtype="bfloat16")
        text = lower_for_tpu(run, parameters, batch)
    kernels = set(re.findall(r'kernel_name = "(\w+)"', text))
    for name in ("grouped_feed_forward_resident", "grouped_matmul_products", "to_tokens"):
        assert any(name in kernel for kernel in kernels), (name, kernels)
    assert sum("gradients" in kernel for kernel in kernels) >= 2, "of products and feed-forward"
