"""A second task, as small as one can be: which share of a row's tokens are even numbers?

The model's answer is the mean over the row of the first component of its final hidden states. Rows
follow from their number; there is no data set and no tokenizer.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Key

from modbrick.bricks.functional import plugged_decoder
from modbrick.checkpoints import Metadata
from modbrick.decoder.decoder import Decoder
from modbrick.objective import Mean, Totals
from modbrick.parallel.batch import local_rows
from modbrick.schema import to_mapping
from modbrick.training.run_config import RunConfig
from modbrick.training.tasks.task import Evaluate, Evaluation, LocalBatch, Work


def row(number: int, length: int, vocabulary: int) -> dict[str, np.ndarray]:
    """Row `number` of the endless data."""
    rng = np.random.default_rng(number)
    tokens = np.where(rng.uniform(size=length) < rng.uniform(), 2, 1)
    tokens = (tokens + 2 * rng.integers(0, vocabulary // 2 - 1, length)).astype(np.int32)
    return {"tokens": tokens, "share": np.asarray((tokens % 2 == 0).mean(), np.float32)}


@dataclasses.dataclass
class Rows:
    """Batches of rows one after another."""

    config: RunConfig
    rows: tuple[int, ...]
    at: int = 0

    def __iter__(self) -> Iterator[LocalBatch]:
        return self

    def __next__(self) -> LocalBatch:
        length, vocabulary = self.config.data.sequence_length, self.config.model.vocabulary
        made = [row(self.at + r, length, vocabulary) for r in self.rows]
        self.at += self.config.data.batch_size
        return {name: np.stack([fields[name] for fields in made]) for name in made[0]}

    def get_state(self) -> int:
        """Number of the next row."""
        return self.at

    def set_state(self, row: int) -> None:
        """Goes to a row."""
        self.at = row

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass


class Regression:
    """The task."""

    loss_name = "squared_error"

    def __init__(self, config: RunConfig):
        self.config = config

    def batch_shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """One token of each kind is an int, and a row has one answer."""
        rows, length = self.config.data.batch_size, self.config.data.sequence_length
        return {
            "tokens": jax.ShapeDtypeStruct((rows, length), jnp.int32),
            "share": jax.ShapeDtypeStruct((rows,), jnp.float32),
        }

    def loss(
        self, model: Decoder, batch: Mapping[str, Any], random_keys: Key[Array, "B"] | None
    ) -> Totals:
        """Squared errors; their absolute values beside them."""
        features = model.features(batch["tokens"], random_keys=random_keys)
        error = features.hidden[..., 0].astype(jnp.float32).mean(-1) - batch["share"]
        count = jnp.float32(error.size)
        metrics = {"absolute_error": Mean(jnp.abs(error).sum(), count)}
        return Totals(jnp.square(error).sum(), count, features.router_statistics, metrics)

    def metadata(self) -> Metadata:
        """The identity is the run's settings."""
        run = {"task": "regression", "training": to_mapping(self.config.training)}
        return Metadata(self.config.model, run=run)

    def tokenizer(self) -> None:
        """There is none."""

    def batches(self, mesh: Mesh) -> Rows:
        """From the first row on."""
        return Rows(self.config, local_rows(mesh, self.config.data.batch_size))

    def work(self, batch: LocalBatch) -> Work:
        """Every position counts, and two operations each."""
        positions = batch["tokens"].size
        return Work(positions, 2.0 * positions)

    def evaluation(self, mesh: Mesh) -> Evaluate:
        """On rows that training never sees."""
        del mesh
        config = self.config
        decoder = plugged_decoder(config.model, config.bricks, config.execution)
        held_out = Rows(self.config, tuple(range(self.config.data.batch_size)), at=10**6)
        batch = next(held_out)

        @jax.jit
        def totals(parameters: Any) -> Totals:
            return self.loss(decoder.bind(parameters), batch, None)

        def run(parameters: Any, should_stop: Callable[[], bool]) -> Evaluation | None:
            if should_stop():
                return None
            found = totals(parameters)
            error = float(found.loss / found.weight)
            return Evaluation({"error": error}, {"error": error}, f"error {error:.3f}")

        return run
