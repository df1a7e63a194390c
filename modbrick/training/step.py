"""One step of training, as one compiled pure function."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from modbrick.bricks.config import NO_BRICKS, BrickConfig, dropout
from modbrick.bricks.functional import plugged_decoder
from modbrick.config import ModelConfig
from modbrick.decoder.decoder import Decoder
from modbrick.execution import ExecutionConfig
from modbrick.layers.router import RouterStatistics
from modbrick.objective import ObjectiveConfig, Totals, objective
from modbrick.optimizer import Optimizer, OptimizerMetrics
from modbrick.parameters import Partition
from modbrick.training.state import TrainState

Batch = Mapping[str, Any]
"""Arrays by name, of numpy or jax; the first axis of each are the rows of the batch."""

TaskLoss = Callable[[Decoder, Batch, Key[Array, "B"] | None], Totals]
"""`loss(model, batch, random_keys)`: the sums of a task over a batch, see `Task.loss`."""

Parts = dict[str, Float[Array, ""]]
Loss = Callable[
    [Any, Batch, Int[Array, ""], Key[Array, ""] | None],
    tuple[Float[Array, ""], tuple[Parts, Totals]],
]
"""`loss(parameters, batch, step, key)`: value to minimise, its parts, and the sums behind them."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class StepMetrics:
    """Metrics of one step.

    Attributes:
      loss: the value minimised.
      parts: its parts before weighting, see `objective`.
      weight: of the batch, such as its number of targets.
      router_statistics: of the global batch, by router.
      optimizer: norm of the gradients, learning rate, skipped updates.
    """

    loss: Float[Array, ""]
    parts: Parts
    weight: Float[Array, ""]
    router_statistics: dict[str, RouterStatistics]
    optimizer: OptimizerMetrics


def loss_function(
    task_loss: TaskLoss,
    config: ModelConfig,
    execution: ExecutionConfig,
    objective_config: ObjectiveConfig,
    *,
    microbatches: int = 1,
    loss_name: str = "next_token",
    bricks: Mapping[str, BrickConfig] = NO_BRICKS,
) -> Loss:
    """Returns `loss(parameters, batch, step, key) -> (value, (parts, totals))`.

    With several microbatches the totals of all of them are summed before the objective is taken, so
    that value and gradient are those of the whole batch, router losses included. Each microbatch is
    recomputed in the backward pass: what lives between the passes is one microbatch's input.

    Args:
      task_loss: sums of the task over a batch.
      config: the model.
      execution: how to run it.
      objective_config: the router losses and their weights.
      microbatches: parts in which a batch is computed.
      loss_name: of the task's mean loss among the parts.
      bricks: customized ones on the model, whose parameters are among the others.
    """
    decoder = plugged_decoder(config, bricks, execution)
    schedules = objective_config.schedules()

    def totals_of(parameters: Any, batch: Batch, random_keys: Key[Array, "B"] | None) -> Totals:
        return task_loss(decoder.bind(parameters, training=True), batch, random_keys)

    def loss(
        parameters: Any, batch: Batch, step: Int[Array, ""], key: Key[Array, ""] | None
    ) -> tuple[Float[Array, ""], tuple[Parts, Totals]]:
        rows = len(next(iter(batch.values())))
        random_keys = None if key is None else jax.random.split(key, rows)
        if microbatches == 1:
            totals = totals_of(parameters, batch, random_keys)
        else:
            totals = _summed(totals_of, parameters, batch, random_keys, microbatches)
        weights = {name: schedule(step) for name, schedule in schedules.items()}
        value, parts = objective(totals, weights, loss_name)
        return value, (parts, totals)

    return loss


def draws(config: ModelConfig, bricks: Mapping[str, BrickConfig] = NO_BRICKS) -> bool:
    """Returns whether training draws anything at random: experts, or what bricks drop."""
    return any(dropout(brick.settings) > 0 for brick in bricks.values()) or any(
        experts is not None and experts.router.sample_top_k > 0
        for layer in config.layers
        for experts in (layer.attention.experts, layer.feed_forward.experts)
    )


def train_step(
    loss: Loss, optimizer: Optimizer, partition: Partition, *, seed: int | None = None
) -> Callable[[TrainState, Batch], tuple[TrainState, StepMetrics]]:
    """Returns the pure function of one step; compile it with the state donated.

    Args:
      loss: from `loss_function`.
      optimizer: of the trainable parameters.
      partition: trainable and frozen parameters.
      seed: of sampled routing and of dropout, which are functions of seed, step and row: a resumed
        run repeats them, and microbatches change nothing. None: nothing is drawn.
    """

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, StepMetrics]:
        key = None if seed is None else jax.random.fold_in(jax.random.key(seed), state.step)

        def of_trainable(trainable: Any) -> tuple[Array, Any]:
            return loss(partition.join(trainable, state.frozen), batch, state.step, key)

        gradient = jax.value_and_grad(of_trainable, has_aux=True)
        (value, (parts, totals)), gradients = gradient(state.trainable)
        trainable, optimizer_state, updated = optimizer.update(
            gradients, state.optimizer, state.trainable
        )
        new = TrainState(state.step + 1, trainable, state.frozen, optimizer_state)
        metrics = StepMetrics(value, parts, totals.weight, totals.router_statistics, updated)
        return new, metrics

    return step


def _summed(
    totals_of: Callable[..., Totals],
    parameters: Any,
    batch: Batch,
    random_keys: Key[Array, "B"] | None,
    microbatches: int,
) -> Totals:
    """Sums the totals of microbatches; rows are interleaved, so that shards stay balanced."""
    pieces = jax.tree.map(
        lambda x: x.reshape(-1, microbatches, *x.shape[1:]).swapaxes(0, 1),
        (dict(batch), random_keys),
    )

    @functools.partial(jax.checkpoint, prevent_cse=False)  # inside a scan: nothing to merge
    def one(piece: tuple[Batch, Key[Array, "B"] | None]) -> Totals:
        return totals_of(parameters, *piece)

    def accumulate(
        total: Totals, piece: tuple[Batch, Key[Array, "B"] | None]
    ) -> tuple[Totals, None]:
        return jax.tree.map(jnp.add, total, one(piece)), None

    shapes = jax.eval_shape(one, jax.tree.map(lambda x: x[0], pieces))
    start = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    return jax.lax.scan(accumulate, start, pieces)[0]
