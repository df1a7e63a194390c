"""The state of training: everything that a step reads and writes."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
from jaxtyping import Array, Int

from modbrick.optimizer import Optimizer
from modbrick.parameters import Parameters, Partition


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """State after `step` steps; `optimizer` has entries for trainable parameters only."""

    step: Int[Array, ""]
    trainable: dict[str, Array]
    frozen: dict[str, Array]
    optimizer: Any


def initial_state(
    parameters: Parameters,
    partition: Partition,
    optimizer: Optimizer,
    shardings: TrainState | None = None,
) -> TrainState:
    """Returns the state before the first step, laid out as `shardings` say."""

    def build(parameters: Parameters) -> TrainState:
        trainable, frozen = partition.split(parameters)
        return TrainState(jax.numpy.int32(0), trainable, frozen, optimizer.init(trainable))

    return jax.jit(build, donate_argnums=0, out_shardings=shardings)(parameters)
