"""Loss, perplexity and bits per byte on held-out text, by domain."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Float64, Int32

from modbrick.bricks.config import NO_BRICKS, BrickConfig
from modbrick.bricks.features import refuse_blind
from modbrick.bricks.functional import plugged_decoder
from modbrick.config import ModelConfig
from modbrick.data import EvaluationBatches
from modbrick.execution import ExecutionConfig
from modbrick.layers.router import RouterStatistics
from modbrick.parallel.batch import batch_sharding, local_slice, place_batch
from modbrick.parallel.processes import gather
from modbrick.training.losses import next_token_losses
from modbrick.training.observe.router_health import RouterHealth
from modbrick.training.step import Batch


@dataclasses.dataclass(frozen=True)
class DomainResult:
    """Measures of how well a domain's text is predicted.

    Attributes:
      loss: mean negative log-likelihood of a target, in nats.
      perplexity: exp(loss).
      bits_per_byte: bits of all targets over the UTF-8 bytes that they stand for.
      tokens, bytes, documents: how much text was seen.
      all_tokens, all_documents: how much there is.
    """

    loss: float
    perplexity: float
    bits_per_byte: float
    tokens: int
    bytes: int
    documents: int
    all_tokens: int
    all_documents: int

    def seen(self) -> str:
        """Returns in words how much text was seen, and of how much."""
        if self.tokens == self.all_tokens:
            return f"all {self.tokens:,} tokens of {self.documents:,} documents"
        return (
            f"{self.tokens:,} of {self.all_tokens:,} tokens, out of {self.documents:,} of "
            f"{self.all_documents:,} documents"
        )


@dataclasses.dataclass(frozen=True)
class EvaluationResult:
    """Results by domain and over all of them, and the routers' health on that text."""

    total: DomainResult
    domains: dict[str, DomainResult]
    router_health: dict[str, RouterHealth]

    def to_mapping(self) -> dict[str, Any]:
        """Returns JSON-able data."""
        return {
            **dataclasses.asdict(self.total),
            "domains": {name: dataclasses.asdict(r) for name, r in self.domains.items()},
            "routers": {name: h.to_mapping() for name, h in self.router_health.items()},
        }

    def summary(self) -> str:
        """Returns the figures over all domains in a line, for people."""
        return (
            f"loss {self.total.loss:.3f}, perplexity {self.total.perplexity:.2f}, "
            f"{self.total.bits_per_byte:.3f} bits per byte ({self.total.seen()})"
        )


EvaluationStep = Callable[[Any, Batch], tuple[Float[Array, "B S"], dict[str, RouterStatistics]]]


def evaluation_step(
    config: ModelConfig,
    execution: ExecutionConfig,
    mesh: Mesh | None = None,
    *,
    bricks: Mapping[str, BrickConfig] = NO_BRICKS,
    brick_sets: Int32[np.ndarray, "D K"] | None = None,
) -> EvaluationStep:
    """Returns the compiled `step(parameters, batch) -> (losses of targets, router statistics)`.

    Args:
      config: the model.
      execution: how to run it.
      mesh: on which losses lie like the batch, and statistics everywhere; None: as it comes.
      bricks: customized ones on the model, whose parameters are among the others.
      brick_sets: ids of the bricks that documents of each of the batches' domains use; None: all.

    Raises:
      InputError: a brick that takes features.
    """
    refuse_blind(bricks)
    decoder = plugged_decoder(config, bricks, execution)
    replicated = mesh and NamedSharding(mesh, PartitionSpec())

    @functools.partial(jax.jit, out_shardings=mesh and (batch_sharding(mesh), replicated))
    def evaluate_batch(parameters: Any, batch: Batch) -> tuple[Array, dict[str, RouterStatistics]]:
        model = decoder.bind(parameters)
        ids = None if brick_sets is None else jnp.asarray(brick_sets)[batch["domains"]]
        features = model.features(
            batch["tokens"],
            segment_ids=batch["segment_ids"],
            positions=batch["positions"],
            brick_ids=ids,
        )
        losses = next_token_losses(model, features.hidden, batch["targets"], ids)
        return losses * batch["loss_mask"], features.router_statistics

    return evaluate_batch


def evaluate(
    step: EvaluationStep,
    parameters: Any,
    batches: EvaluationBatches,
    *,
    mesh: Mesh | None = None,
    progress: Callable[[], None] | None = None,
    stop: Callable[[], bool] | None = None,
) -> EvaluationResult | None:
    """Evaluates parameters on every batch.

    Args:
      step: from `evaluation_step`.
      parameters: whole, by path.
      batches: held-out text; each of its targets counts exactly once.
      mesh: to divide batches over, as given to `evaluation_step`. All processes make this call,
        each with the rows that its devices hold, and all get the result.
      progress: called after each batch.
      stop: asked before each batch; says the same in every process.

    Returns:
      The result, or None if `stop` said so.
    """
    losses = np.zeros(len(batches.domains), np.float64)
    statistics: dict[str, Any] = {}
    for batch in batches:
        if stop is not None and stop():
            return None
        fields: Batch = batch
        if mesh is not None:
            fields = place_batch(fields, mesh, batches.batch_size)
        of_tokens, of_routers = step(parameters, fields)
        losses += loss_sums(jnp.asarray(of_tokens), batch["domains"], batches.rows, len(losses))
        statistics = jax.tree.map(np.add, statistics, of_routers) if statistics else of_routers
        if progress is not None:
            progress()
    losses = np.sum(gather(losses.tolist()), axis=0)
    amounts = (
        batches.tokens,
        batches.scored_bytes,
        batches.documents,
        batches.all_tokens,
        batches.all_documents,
    )
    results = {
        name: _result(float(loss), *(amount[name] for amount in amounts))
        for name, loss in zip(batches.domains, losses, strict=True)
    }
    total = _result(float(losses.sum()), *(sum(amount.values()) for amount in amounts))
    health = {name: RouterHealth.from_statistics(s) for name, s in statistics.items()}
    return EvaluationResult(total, results, health)


def loss_sums(
    losses: Float[Array, "B S"], domains: Int32[np.ndarray, "b S"], rows: Sequence[int], count: int
) -> Float64[np.ndarray, " D"]:
    """Sums the losses of each domain that lie on this process's devices, each loss once.

    Args:
      losses: of the global batch.
      domains: of the positions of this process's rows.
      rows: which rows of the global batch these are.
      count: of domains, D.
    """
    sums = np.zeros(count, np.float64)
    for shard in losses.addressable_shards:
        if shard.replica_id:  # another device has the same
            continue
        of_positions = domains[local_slice(shard.index[0], rows), shard.index[1]]
        weights = np.asarray(shard.data, np.float64).reshape(-1)
        sums += np.bincount(of_positions.reshape(-1), weights=weights, minlength=count)
    return sums


def _result(
    loss: float, tokens: int, size: int, documents: int, all_tokens: int, all_documents: int
) -> DomainResult:
    mean = loss / max(tokens, 1)
    return DomainResult(
        loss=mean,
        perplexity=math.exp(min(mean, 700.0)),
        bits_per_byte=loss / math.log(2) / max(size, 1),
        tokens=tokens,
        bytes=size,
        documents=documents,
        all_tokens=all_tokens,
        all_documents=all_documents,
    )
