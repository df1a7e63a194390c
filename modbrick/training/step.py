"""One step of training, as one compiled pure function."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from modbrick.config import ModelConfig
from modbrick.execution import ExecutionConfig
from modbrick.layers.decoder import Decoder
from modbrick.layers.functional import functional_decoder
from modbrick.layers.router import RouterStatistics
from modbrick.next_token import head_loss
from modbrick.objective import ObjectiveConfig, Totals, objective
from modbrick.optimizer import Optimizer, OptimizerMetrics
from modbrick.parameters import Partition
from modbrick.training.state import TrainState

# int32 arrays [B, S] by name, of numpy or jax; see `batch_totals`.
Batch = Mapping[str, Any]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class StepReport:
    """What a step tells.

    Attributes:
      loss: the value minimised.
      parts: its parts before weighting, see `objective`.
      targets: number of targets in the batch.
      router_statistics: of the global batch, by router.
      optimizer: norm of the gradients, learning rate, skipped updates.
    """

    loss: Float[Array, ""]
    parts: dict[str, Float[Array, ""]]
    targets: Float[Array, ""]
    router_statistics: dict[str, RouterStatistics]
    optimizer: OptimizerMetrics


def batch_totals(model: Decoder, batch: Batch, keys: Key[Array, "B"] | None) -> Totals:
    """Returns the sums over a batch that the objective is made of.

    Args:
      model: the decoder.
      batch: `tokens`, `targets`, `segment_ids`, `positions` and `loss_mask`, `[B, S]`.
      keys: one for each row, for sampled routing.
    """
    features = model.features(
        batch["tokens"],
        segment_ids=batch["segment_ids"],
        positions=batch["positions"],
        random_keys=keys,
    )
    weights = batch["loss_mask"].astype(jnp.float32)
    loss = head_loss(
        features.hidden,
        model.head_weight,
        batch["targets"],
        weights,
        model.config.logit_multiplier,
        model.execution.head_chunk,
    )
    return Totals(loss, weights.sum(), features.router_statistics)


def loss_function(
    config: ModelConfig,
    execution: ExecutionConfig,
    objective_config: ObjectiveConfig,
    microbatches: int = 1,
) -> Callable[..., tuple[Float[Array, ""], tuple[dict[str, Float[Array, ""]], Totals]]]:
    """Returns `loss(parameters, batch, step, key) -> (value, (parts, totals))`.

    With several microbatches the totals of all of them are summed before the objective is taken, so
    that value and gradient are those of the whole batch, router losses included. Each microbatch is
    recomputed in the backward pass: what lives between the passes is one microbatch's input.
    """
    decoder = functional_decoder(config, execution)
    schedules = objective_config.schedules()

    def totals_of(parameters: Any, batch: Batch, keys: Key[Array, "B"] | None) -> Totals:
        return batch_totals(decoder.bind(parameters), batch, keys)

    def loss(
        parameters: Any, batch: Batch, step: Int[Array, ""], key: jax.Array | None
    ) -> tuple[Float[Array, ""], tuple[dict[str, Float[Array, ""]], Totals]]:
        keys = None if key is None else jax.random.split(key, len(batch["tokens"]))
        if microbatches == 1:
            totals = totals_of(parameters, batch, keys)
        else:
            totals = _summed(totals_of, parameters, batch, keys, microbatches)
        weights = {name: schedule(step) for name, schedule in schedules.items()}
        value, parts = objective(totals, weights)
        return value, (parts, totals)

    return loss


def train_step(
    config: ModelConfig,
    execution: ExecutionConfig,
    objective_config: ObjectiveConfig,
    optimizer: Optimizer,
    partition: Partition,
    *,
    microbatches: int = 1,
    seed: int = 0,
) -> Callable[[TrainState, Batch], tuple[TrainState, StepReport]]:
    """Returns the pure function of one step; compile it with the state donated.

    Randomness (sampled routing) is a function of seed, step and row: a resumed run repeats it, and
    microbatches change nothing.
    """
    loss = loss_function(config, execution, objective_config, microbatches)
    sampled = any(
        experts is not None and experts.router.sample_top_k > 0
        for layer in config.layers
        for experts in (layer.attention.experts, layer.feed_forward.experts)
    )

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, StepReport]:
        key = jax.random.fold_in(jax.random.key(seed), state.step) if sampled else None

        def of_trainable(trainable: Any) -> tuple[Array, Any]:
            return loss(partition.join(trainable, state.frozen), batch, state.step, key)

        gradient = jax.value_and_grad(of_trainable, has_aux=True)
        (value, (parts, totals)), gradients = gradient(state.trainable)
        trainable, optimizer_state, metrics = optimizer.update(
            gradients, state.optimizer, state.trainable
        )
        new = TrainState(state.step + 1, trainable, state.frozen, optimizer_state)
        report = StepReport(value, parts, totals.weight, totals.router_statistics, metrics)
        return new, report

    return step


def _summed(
    totals_of: Callable[..., Totals],
    parameters: Any,
    batch: Batch,
    keys: Key[Array, "B"] | None,
    microbatches: int,
) -> Totals:
    """Sums the totals of microbatches; rows are dealt out in turn, so that shards stay balanced."""
    pieces = jax.tree.map(
        lambda x: x.reshape(-1, microbatches, *x.shape[1:]).swapaxes(0, 1), (dict(batch), keys)
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
