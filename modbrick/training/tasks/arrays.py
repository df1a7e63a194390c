"""Training on examples that fit in memory: arrays of tokens, and features beside them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Key

from modbrick.bricks.features import check_features
from modbrick.bricks.functional import plugged_decoder
from modbrick.checkpoints import Metadata
from modbrick.data import Tokenizer
from modbrick.decoder.decoder import Decoder
from modbrick.decoder.output import Features
from modbrick.errors import InputError
from modbrick.flops import packed_flops
from modbrick.next_token import token_losses
from modbrick.objective import Totals
from modbrick.parallel.batch import check_rows, local_rows
from modbrick.schema import to_mapping
from modbrick.training.losses import next_token_loss
from modbrick.training.run_config import RunConfig
from modbrick.training.tasks.examples import FEATURES, Examples, checked, digest, features_of
from modbrick.training.tasks.task import Evaluate, Evaluation, LocalBatch, Work


@dataclasses.dataclass
class Shuffled:
    """Batches of examples: each epoch is all of them once, in an order of its own."""

    examples: Examples
    seed: int
    batch: int
    rows: tuple[int, ...]
    at: int = 0
    _order: tuple[int, np.ndarray] | None = dataclasses.field(default=None, init=False)

    def __next__(self) -> LocalBatch:
        count = len(self.examples["tokens"])
        chosen = []
        for row in self.rows:
            epoch, index = divmod(self.at + row, count)
            chosen.append(self._order_of(epoch, count)[index])
        self.at += self.batch
        return {name: array[chosen] for name, array in self.examples.items()}

    def _order_of(self, epoch: int, count: int) -> np.ndarray:
        """Returns the order of an epoch, which is made once."""
        if self._order is None or self._order[0] != epoch:
            self._order = epoch, np.random.default_rng([self.seed, epoch]).permutation(count)
        return self._order[1]

    def __iter__(self) -> Iterator[LocalBatch]:
        return self

    def get_state(self) -> int:
        """Returns the number of the first row of the next global batch."""
        return self.at

    def set_state(self, row: int) -> None:
        """Continues with the global batch that begins at `row`."""
        self.at = row

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing reads ahead."""


class ArrayTask:
    """The next token of examples in memory, with features for bricks that take them."""

    loss_name = "next_token"

    def __init__(
        self,
        config: RunConfig,
        examples: Examples,
        held_out: Examples,
        tokenizer: Tokenizer | None = None,
    ):
        """Makes the task of a run; of `config.data` it goes by `batch_size` and `seed`.

        Args:
          config: of the run.
          examples: to train on.
          held_out: to evaluate on: of the same names and shapes but for their number.
          tokenizer: of the tokens; saved beside the checkpoints.

        Raises:
          InputError: arrays that do not fit together, or not the bricks of the run.
        """
        if config.brick_sets:
            raise InputError("brick_sets are of domains of a data set, arrays have none: leave out")
        vocabulary = config.model.vocabulary
        self.config, self._tokenizer = config, tokenizer
        self._examples = examples = checked(examples, "examples", vocabulary)
        self._held_out = held_out = checked(held_out, "held_out", vocabulary)
        shapes = [{name: x.shape[1:] for name, x in some.items()} for some in (examples, held_out)]
        if shapes[0] != shapes[1]:
            raise InputError(f"examples of {shapes[0]} do not fit held-out ones of {shapes[1]}")
        check_features(config.bricks, features_of(examples), FEATURES)

    def batch_shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Returns the arrays of a global batch."""
        rows = self.config.data.batch_size
        return {
            name: jax.ShapeDtypeStruct((rows, *array.shape[1:]), array.dtype)
            for name, array in self._examples.items()
        }

    def loss(
        self, model: Decoder, batch: Mapping[str, Any], random_keys: Key[Array, "B"] | None
    ) -> Totals:
        """Returns the sums of the next-token loss."""
        found = _run(model, batch, random_keys)
        weights = batch["loss_mask"].astype(jnp.float32)
        loss = next_token_loss(
            model, found.hidden, batch["targets"], weights, random_keys=random_keys
        )
        return Totals(loss, weights.sum(), found.router_statistics)

    def metadata(self) -> Metadata:
        """Returns model, identity of the run, and tokenizer."""
        data = self.config.data
        order = {"seed": data.seed, "batch_size": data.batch_size}
        run = self.config.settings() | {"data": {"examples": digest(self._examples), **order}}
        identity = self._tokenizer.identity if self._tokenizer else None
        return Metadata(self.config.model, run, to_mapping(identity) if identity else {})

    def tokenizer(self) -> Tokenizer | None:
        """Returns the tokenizer, if one was given."""
        return self._tokenizer

    def batches(self, mesh: Mesh) -> Shuffled:
        """Returns the training batches from the first row on."""
        data = self.config.data
        return Shuffled(
            self._examples, data.seed, data.batch_size, local_rows(mesh, data.batch_size)
        )

    def work(self, batch: LocalBatch) -> Work:
        """Returns tokens and useful operations of a global batch."""
        rows, positions = batch["tokens"].shape
        whole = self.config.data.batch_size
        counted = np.flip(np.maximum.accumulate(np.flip(batch["loss_mask"], 1), 1), 1)  # as `_run`
        places = np.broadcast_to(np.arange(positions, dtype=np.int32), (rows, positions))
        packed = {"segment_ids": counted, "positions": places}
        flops = packed_flops(self.config.model, packed) * whole / rows
        return Work(whole * positions, flops)

    def evaluation(self, mesh: Mesh) -> Evaluate:
        """Returns the evaluation on held-out examples; its metrics are `loss` and `accuracy`.

        The accuracy is the share of targets that are the likeliest token.
        """
        config, held_out = self.config, self._held_out
        size = config.evaluation.batch_size or config.data.batch_size
        check_rows(mesh, size, f"evaluation.batch_size {size}")
        decoder = plugged_decoder(config.model, config.bricks, config.execution)

        @jax.jit
        def sums(parameters: Any, batch: Mapping[str, Any]) -> tuple[Array, Array, Array]:
            model = decoder.bind(parameters)
            hidden, targets = _run(model, batch, None).hidden, batch["targets"]
            weights = batch["loss_mask"].astype(jnp.float32)
            logits = model.logits(hidden)  # once, for both metrics
            losses, right = token_losses(logits, targets), logits.argmax(-1) == targets
            return (losses * weights).sum(), (right * weights).sum(), weights.sum()

        def run(parameters: Any, should_stop: Callable[[], bool]) -> Evaluation | None:
            totals = np.zeros(3)
            for first in range(0, len(held_out["tokens"]), size):
                if should_stop():
                    return None
                part = {name: array[first : first + size] for name, array in held_out.items()}
                missing = size - len(part["tokens"])  # zeros, whose targets do not count
                part = {
                    n: np.pad(x, [(0, missing), *[(0, 0)] * (x.ndim - 1)]) for n, x in part.items()
                }
                totals += np.array([float(x) for x in sums(parameters, part)])
            loss, accuracy = totals[:2] / totals[2]
            metrics = {"loss": loss, "accuracy": accuracy}
            text = f"loss {loss:.4f}, accuracy {accuracy:.3f} on {len(held_out['tokens'])} examples"
            return Evaluation(metrics, metrics, text)

        return run


def _run(model: Decoder, batch: Mapping[str, Any], random_keys: Key[Array, "B"] | None) -> Features:
    """Runs a model up to the last target of each row; what stands behind it is padding."""
    real = jax.lax.cummax(jnp.asarray(batch["loss_mask"]), axis=1, reverse=True)
    return model.features(
        batch["tokens"],
        attention_mask=real > 0,
        brick_features=features_of(batch),
        random_keys=random_keys,
    )
