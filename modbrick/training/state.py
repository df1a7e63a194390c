"""The state of training: everything that a step reads and writes."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
from flax import nnx
from jaxtyping import Array, Int

from modbrick.config import ModelConfig
from modbrick.layers.decoder import Decoder
from modbrick.optimizer import Optimizer
from modbrick.parameters.partition import Partition


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """State after `step` steps; `optimizer` has entries for trainable parameters only."""

    step: Int[Array, ""]
    trainable: Any
    frozen: Any
    optimizer: Any


def initial_parameters(
    config: ModelConfig, key: jax.Array, shardings: Any | None = None
) -> dict[str, Any]:
    """Returns a new model's parameters, nested, float32; compiled, so that none exists twice.

    Args:
      config: the model.
      key: of the random values, which do not depend on the shardings.
      shardings: nested like the parameters; None: the default device.
    """
    # Runs once: on CPU the compiler's full effort took 11 s of processor time for it, this 2 s.
    build = functools.partial(_new_parameters, config)
    options = {"xla_backend_optimization_level": 1}
    return jax.jit(build, out_shardings=shardings, compiler_options=options)(key)


def abstract_parameters(config: ModelConfig) -> dict[str, Any]:
    """Returns shapes and dtypes of a model's parameters, nested."""
    return jax.eval_shape(functools.partial(_new_parameters, config), jax.random.key(0))


def _new_parameters(config: ModelConfig, key: jax.Array) -> dict[str, Any]:
    return nnx.to_pure_dict(nnx.state(Decoder(config, key=key)))


def initial_state(
    parameters: dict[str, Any],
    partition: Partition,
    optimizer: Optimizer,
    shardings: TrainState | None = None,
) -> TrainState:
    """Returns the state before the first step, laid out as `shardings` say."""

    def build(parameters: dict[str, Any]) -> TrainState:
        trainable, frozen = partition.split(parameters)
        return TrainState(jax.numpy.int32(0), trainable, frozen, optimizer.init(trainable))

    return jax.jit(build, donate_argnums=0, out_shardings=shardings)(parameters)
