"""Pretraining: the next token of packed rows of text, evaluated on held-out documents."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Int32, Key

from modbrick.bricks.features import refuse_blind
from modbrick.bricks.plugging import sets_of_domains
from modbrick.checkpoints import Metadata
from modbrick.data import (
    Dataset,
    Tokenizer,
    TrainingBatches,
    check_vocabulary,
    evaluation_batches,
    training_batches,
)
from modbrick.data.batches import DOMAINS, FIELDS
from modbrick.data.row_plan import RowPlan
from modbrick.decoder.decoder import Decoder
from modbrick.errors import InputError
from modbrick.flops import packed_flops
from modbrick.objective import Totals
from modbrick.parallel.batch import check_rows, local_rows
from modbrick.parallel.processes import say
from modbrick.schema import nearest, to_mapping
from modbrick.training.evaluation import evaluate, evaluation_step
from modbrick.training.losses import next_token_loss
from modbrick.training.run_config import RunConfig
from modbrick.training.tasks.task import Evaluate, Evaluation, LocalBatch, Work


def next_token_totals(
    model: Decoder,
    batch: Mapping[str, Any],
    random_keys: Key[Array, "B"] | None,
    brick_ids: Int32[Array, "B S K"] | None = None,
) -> Totals:
    """Returns the sums of the next-token loss over packed rows.

    Args:
      model: the decoder.
      batch: `tokens`, `targets`, `segment_ids`, `positions` and `loss_mask`, int32 `[B, S]`, see
        `modbrick.data.batches`.
      random_keys: one for each row, of what is drawn; None: nothing is.
      brick_ids: of the bricks that each token uses; None: all.
    """
    features = model.features(
        batch["tokens"],
        segment_ids=batch["segment_ids"],
        positions=batch["positions"],
        random_keys=random_keys,
        brick_ids=brick_ids,
    )
    weights = batch["loss_mask"].astype(jnp.float32)
    loss = next_token_loss(
        model, features.hidden, batch["targets"], weights, brick_ids, random_keys
    )
    return Totals(loss, weights.sum(), features.router_statistics)


class Pretraining:
    """The task of a pretraining run; opens the data set when first asked for something of it."""

    loss_name = "next_token"

    def __init__(self, config: RunConfig):
        """Makes the task of a run.

        Raises:
          InputError: bricks that take features.
        """
        refuse_blind(
            config.bricks,
            "train it with modbrick.training.tasks.arrays, as examples/digits.py does",
        )
        self.config = config

    @functools.cached_property
    def dataset(self) -> Dataset:
        """The prepared data set."""
        return Dataset.open(self.config.data.path)

    def batch_shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Returns the arrays of a global batch."""
        shape = (self.config.data.batch_size, self.config.data.sequence_length)
        fields = (*FIELDS, DOMAINS) if self.config.brick_sets else FIELDS
        return {name: jax.ShapeDtypeStruct(shape, jnp.int32) for name in fields}

    def loss(
        self, model: Decoder, batch: Mapping[str, Any], random_keys: Key[Array, "B"] | None
    ) -> Totals:
        """Returns the sums of the next-token loss."""
        ids = None
        if self.config.brick_sets:
            ids = jnp.asarray(self._training_sets)[batch[DOMAINS]]
        return next_token_totals(model, batch, random_keys, ids)

    @functools.cached_property
    def _training_sets(self) -> Int32[np.ndarray, "D K"] | None:
        """Ids of the bricks that documents of each training domain use; None: all use all."""
        domains = self.dataset.documents("train").domains
        if unknown := sorted(self.config.brick_sets.keys() - set(domains)):
            remark = nearest(unknown[0], domains)
            raise InputError(f"brick_sets names the domain {unknown[0]!r}; {remark}")
        return sets_of_domains(self.config.bricks, self.config.brick_sets, domains)

    def metadata(self) -> Metadata:
        """Returns model, identity of the run, and tokenizer."""
        return Metadata(
            model=self.config.model,
            run=self.config.identity(self.dataset),
            tokenizer=to_mapping(self.dataset.tokenizer_identity),
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
        if domains := bool(self.config.brick_sets):
            _ = self._training_sets  # refuses what is misspelt
        batches = training_batches(self.dataset, data, rows=rows, domains=domains)
        _require_enough_rows(batches.plan.rows, self.config)
        say(_repetitions(batches.plan, self.config))
        return batches

    def work(self, batch: LocalBatch) -> Work:
        """Returns tokens and useful operations of a global batch."""
        rows, positions = batch["tokens"].shape
        whole = self.config.data.batch_size
        flops = packed_flops(self.config.model, batch) * whole / rows
        return Work(whole * positions, flops)

    def evaluation(self, mesh: Mesh) -> Evaluate:
        """Returns the evaluation on held-out documents; its metric is `loss`.

        A data set without held-out documents is enough where nobody asks for a metric: with
        `evaluation.every` 0 and no `checkpoint.keep_best`.
        """
        config = self.config
        unasked = config.evaluation.every == 0 and config.checkpoint.keep_best == 0
        if unasked and not self.dataset.domains("held_out"):
            return _nothing_held_out
        rows = config.evaluation.batch_size or config.data.batch_size
        check_rows(mesh, rows, f"evaluation.batch_size {rows}")
        held_out = evaluation_batches(
            self.dataset,
            sequence_length=config.data.sequence_length,
            batch_size=rows,
            max_tokens=config.evaluation.max_tokens,
            rows=local_rows(mesh, rows),
        )
        step = evaluation_step(
            config.model,
            config.execution,
            mesh,
            bricks=config.bricks,
            brick_sets=sets_of_domains(config.bricks, config.brick_sets, held_out.domains),
        )

        def run(parameters: Any, should_stop: Callable[[], bool]) -> Evaluation | None:
            result = evaluate(step, parameters, held_out, mesh=mesh, stop=should_stop)
            if result is None:
                return None
            return Evaluation({"loss": result.total.loss}, result.to_mapping(), result.summary())

        return run


MOST_REPETITIONS = 4.0
"""Of a text, up to which it teaches about as much as new text (arXiv 2305.16264)."""


def _repetitions(plan: RowPlan, config: RunConfig) -> str:
    """Returns a line about how often the run reads each domain, and what it reads too often."""
    found = plan.repetitions(config.training.steps * config.data.batch_size)
    times = ", ".join(f"{name} {count:.2f} times" for name, count in sorted(found.items()))
    often = [name for name, count in sorted(found.items()) if count > MOST_REPETITIONS]
    remark = f"; more than {MOST_REPETITIONS:.0f} times teaches little: {', '.join(often)}"
    return f"data: {config.training.steps} steps read {times}" + remark * bool(often)


def _nothing_held_out(parameters: Any, should_stop: Callable[[], bool]) -> Evaluation:
    del parameters, should_stop
    # Its metrics are not empty, as those of an evaluation that was given up are.
    return Evaluation({"documents": 0}, {"documents": 0}, "the data set has no such document")


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
