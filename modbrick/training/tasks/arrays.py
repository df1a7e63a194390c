"""Training on examples that fit in memory: arrays of tokens, and features beside them."""

from __future__ import annotations

import dataclasses
import hashlib
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
from modbrick.errors import InputError
from modbrick.flops import packed_flops
from modbrick.next_token import token_losses
from modbrick.objective import Totals
from modbrick.parallel.batch import local_rows
from modbrick.schema import to_mapping
from modbrick.training.losses import next_token_loss
from modbrick.training.run_config import RunConfig
from modbrick.training.tasks.task import Evaluate, Evaluation, LocalBatch, Work

FIELDS = ("tokens", "targets", "loss_mask")
FEATURES = "features."
"""Front of the names of features, `[N, P, W]`, which a call of the model gets by the rest."""

Examples = Mapping[str, np.ndarray]
"""Arrays of N examples: `tokens` and `targets` (what follows each token), int32 `[N, S]`,
`loss_mask`, 1 where a target counts, and features. What no target depends on is padding: behind the
others, with any token."""


@dataclasses.dataclass
class Shuffled:
    """Batches of examples: each epoch is all of them once, in an order of its own."""

    examples: Examples
    seed: int
    batch: int
    rows: tuple[int, ...]
    at: int = 0

    def __next__(self) -> LocalBatch:
        count = len(self.examples["tokens"])
        chosen = []
        for row in self.rows:
            epoch, index = divmod(self.at + row, count)
            order = np.random.default_rng([self.seed, epoch]).permutation(count)
            chosen.append(order[index])
        self.at += self.batch
        return {name: array[chosen] for name, array in self.examples.items()}

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
        self.config, self._examples, self._held_out = config, examples, held_out
        self._tokenizer = tokenizer
        _check(examples, "examples")
        _check(held_out, "held_out")
        shapes = [{name: x.shape[1:] for name, x in some.items()} for some in (examples, held_out)]
        if shapes[0] != shapes[1]:
            raise InputError(f"examples of {shapes[0]} do not fit held-out ones of {shapes[1]}")
        check_features(config.bricks, _features(examples), FEATURES)

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
        found = model.features(
            batch["tokens"], brick_features=_features(batch), random_keys=random_keys
        )
        weights = batch["loss_mask"].astype(jnp.float32)
        loss = next_token_loss(
            model, found.hidden, batch["targets"], weights, random_keys=random_keys
        )
        return Totals(loss, weights.sum(), found.router_statistics)

    def metadata(self) -> Metadata:
        """Returns model, identity of the run, and tokenizer."""
        data = self.config.data
        order = {"seed": data.seed, "batch_size": data.batch_size}
        run = self.config.settings() | {"data": {"examples": _digest(self._examples), **order}}
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
        # Up to the last target; what stands behind it is padding.
        counted = np.flip(np.maximum.accumulate(np.flip(batch["loss_mask"], 1), 1), 1)
        places = np.broadcast_to(np.arange(positions, dtype=np.int32), (rows, positions))
        packed = {"segment_ids": counted, "positions": places}
        flops = packed_flops(self.config.model, packed) * whole / rows
        return Work(whole * positions, flops)

    def evaluation(self, mesh: Mesh) -> Evaluate:
        """Returns the evaluation on held-out examples; its metrics are `loss` and `accuracy`.

        The accuracy is the share of targets that are the likeliest token.
        """
        del mesh
        config, held_out = self.config, self._held_out
        decoder = plugged_decoder(config.model, config.bricks, config.execution)

        @jax.jit
        def sums(parameters: Any, batch: Mapping[str, Any]) -> tuple[Array, Array, Array]:
            model = decoder.bind(parameters)
            logits = model(batch["tokens"], brick_features=_features(batch)).logits
            weights = batch["loss_mask"].astype(jnp.float32)
            right = logits.argmax(-1) == batch["targets"]
            loss = (token_losses(logits, batch["targets"]) * weights).sum()
            return loss, (right * weights).sum(), weights.sum()

        def run(parameters: Any, should_stop: Callable[[], bool]) -> Evaluation | None:
            totals, size = np.zeros(3), config.evaluation.batch_size or config.data.batch_size
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


def next_token_examples(
    rows: list[tuple[list[int], list[int]]], padding: int = 0
) -> dict[str, np.ndarray]:
    """Returns arrays of examples from prompts and their answers, padded to the longest.

    Args:
      rows: tokens of a prompt, and those that answer it; only these count in the loss.
      padding: token that stands behind a row.
    """
    length = max(len(prompt) + len(answer) for prompt, answer in rows) - 1
    tokens = np.full((len(rows), length + 1), padding, np.int32)
    mask = np.zeros((len(rows), length), np.int32)
    for number, (prompt, answer) in enumerate(rows):
        whole = [*prompt, *answer]
        tokens[number, : len(whole)] = whole
        mask[number, len(prompt) - 1 : len(whole) - 1] = 1
    return {"tokens": tokens[:, :-1], "targets": tokens[:, 1:], "loss_mask": mask}


def _features(batch: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name.removeprefix(FEATURES): x for name, x in batch.items() if name.startswith(FEATURES)
    }


def _check(examples: Examples, what: str) -> None:
    if missing := [name for name in FIELDS if name not in examples]:
        raise InputError(f"{what} have no {missing[0]}")
    shape = examples["tokens"].shape
    for name, array in examples.items():
        if name not in FIELDS and not name.startswith(FEATURES):
            raise InputError(f"{what} have {name!r}: features begin with {FEATURES!r}")
        if name in FIELDS and array.shape != shape:
            raise InputError(f"{name} of {what} have shape {array.shape}, tokens {shape}")
        if len(array) != len(examples["tokens"]) or not len(array):
            raise InputError(f"{name} of {what}: {len(array)} for {shape[0]} examples")


def _digest(examples: Examples) -> str:
    digest = hashlib.sha256()
    for name in sorted(examples):
        array = np.ascontiguousarray(examples[name])
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()[:16]
