"""Pretraining: the next token of packed rows of text, evaluated on held-out documents."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Key

from modbrick.checkpoints import Metadata
from modbrick.data import (
    Dataset,
    Tokenizer,
    TrainingBatches,
    check_vocabulary,
    evaluation_batches,
    training_batches,
)
from modbrick.data.batches import FIELDS
from modbrick.decoder.decoder import Decoder
from modbrick.errors import InputError
from modbrick.flops import packed_flops
from modbrick.next_token import head_loss
from modbrick.objective import Totals
from modbrick.parallel.batch import check_rows, local_rows
from modbrick.schema import to_mapping
from modbrick.training.base_model import base_model, refuse_head
from modbrick.training.evaluation import evaluate, evaluation_step
from modbrick.training.run_config import RunConfig
from modbrick.training.tasks.task import Evaluate, Evaluation, LocalBatch, Work


def next_token_totals(
    model: Decoder, batch: Mapping[str, Any], random_keys: Key[Array, "B"] | None
) -> Totals:
    """Returns the sums of the next-token loss over packed rows.

    Args:
      model: the decoder.
      batch: `tokens`, `targets`, `segment_ids`, `positions` and `loss_mask`, int32 `[B, S]`, see
        `modbrick.data.batches`.
      random_keys: one for each row, for sampled routing.
    """
    features = model.features(
        batch["tokens"],
        segment_ids=batch["segment_ids"],
        positions=batch["positions"],
        random_keys=random_keys,
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


class Pretraining:
    """The task of a pretraining run; opens the data set when first asked for something of it."""

    loss_name = "next_token"

    def __init__(self, config: RunConfig):
        """Makes the task of a run.

        Raises:
          InputError: bricks at the head.
        """
        refuse_head(config)
        self.config = config

    @functools.cached_property
    def dataset(self) -> Dataset:
        """The prepared data set."""
        return Dataset.open(self.config.data.path)

    def batch_shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Returns the arrays of a global batch."""
        shape = (self.config.data.batch_size, self.config.data.sequence_length)
        return {name: jax.ShapeDtypeStruct(shape, jnp.int32) for name in FIELDS}

    def loss(
        self, model: Decoder, batch: Mapping[str, Any], random_keys: Key[Array, "B"] | None
    ) -> Totals:
        """Returns the sums of the next-token loss."""
        return next_token_totals(model, batch, random_keys)

    def metadata(self) -> Metadata:
        """Returns model, identity of the run, and tokenizer."""
        return Metadata(
            model=self.config.model,
            run=self.config.identity(self.dataset),
            tokenizer=to_mapping(self.dataset.tokenizer_identity),
            bricks=self.config.bricks,
            base=base_model(self.config),
        )

    def tokenizer(self) -> Tokenizer:
        """Returns the tokenizer of the data set."""
        return self.dataset.tokenizer()

    def batches(self, mesh: Mesh) -> TrainingBatches:
        """Returns the training batches.

        Raises:
          InputError: tokens outside of the vocabulary, a misspelt domain, or too little data.
        """
        data = self.config.data
        check_vocabulary(self.dataset, self.config.model.vocabulary)
        rows = local_rows(mesh, data.batch_size)
        batches = training_batches(self.dataset, data, rows=rows)
        _require_enough_rows(batches.plan.rows, self.config)
        return batches

    def work(self, batch: LocalBatch) -> Work:
        """Returns tokens and useful operations of a global batch."""
        rows, positions = batch["tokens"].shape
        whole = self.config.data.batch_size
        flops = packed_flops(self.config.model, batch) * whole / rows
        return Work(whole * positions, flops)

    def evaluation(self, mesh: Mesh) -> Evaluate:
        """Returns the evaluation on held-out documents; its metric is `loss`."""
        config = self.config
        rows = config.evaluation.batch_size or config.data.batch_size
        check_rows(mesh, rows, f"evaluation.batch_size {rows}")
        held_out = evaluation_batches(
            self.dataset,
            sequence_length=config.data.sequence_length,
            batch_size=rows,
            max_tokens=config.evaluation.max_tokens,
            rows=local_rows(mesh, rows),
        )
        step = evaluation_step(config.model, config.execution, mesh, bricks=config.bricks)

        def run(parameters: Any, should_stop: Callable[[], bool]) -> Evaluation | None:
            result = evaluate(step, parameters, held_out, mesh=mesh, stop=should_stop)
            if result is None:
                return None
            return Evaluation({"loss": result.total.loss}, result.to_mapping(), result.summary())

        return run


def _require_enough_rows(rows: int | None, config: RunConfig) -> None:
    """Refuses a run that is longer than its data: `data.epochs` of them."""
    if rows is None:
        return
    steps = -(-rows // config.data.batch_size)
    if steps < config.training.steps:
        raise InputError(
            f"{config.data.epochs} data.epochs are {steps} steps: set training.steps to at most "
            "that, or data.epochs to None"
        )
