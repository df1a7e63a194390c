"""Protocol of a task: batches, the loss of a batch, and evaluation.

Gradients, microbatches and the division by global sums are the step's, not the task's; fetching,
logging, saving and stopping are the loop's. A new task is a class with these methods:
`modbrick.training.tasks.pretraining` is the first one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import Any, Protocol, Self

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Key

from modbrick.checkpoints import Metadata
from modbrick.data import Tokenizer
from modbrick.decoder.decoder import Decoder
from modbrick.objective import Totals

LocalBatch = Mapping[str, np.ndarray]
"""Arrays by name, `[b, ...]`, of the rows that this process's devices hold (`local_rows`)."""


class Batches(Protocol):
    """Iterator over local batches, whose whole state is the number of the next global row."""

    def __next__(self) -> LocalBatch:
        """Returns this process's rows of the next global batch."""

    def __iter__(self) -> Iterator[LocalBatch]:
        """Returns itself."""

    def get_state(self) -> int:
        """Returns the number of the first row of the next global batch."""

    def set_state(self, row: int) -> None:
        """Continues with the global batch that begins at `row`."""

    def __enter__(self) -> Self:
        """Returns itself."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stops what reads ahead."""


@dataclasses.dataclass(frozen=True)
class Work:
    """Size of a global batch.

    Attributes:
      tokens: positions, padding included.
      flops: useful operations, forward and backward; padding counts as none.
    """

    tokens: int
    flops: float


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Result on held-out data.

    Attributes:
      metrics: numbers by name, saved with the checkpoint of the same step; none if nothing could be
        measured. `checkpoint.best_metric` names the one that `checkpoint.keep_best` goes by.
      record: everything worth recording, JSON-able.
      text: one line for people.
    """

    metrics: Mapping[str, float]
    record: Mapping[str, Any]
    text: str


Evaluate = Callable[[Any, Callable[[], bool]], Evaluation | None]
"""`evaluate(parameters, should_stop)`: the result for a model's whole parameters; None if
`should_stop()` was true. Every process makes this call, and all get the same."""


class Task(Protocol):
    """Task of a run: what it is trained for.

    A task may be made without its data: the methods that need them open them.
    """

    loss_name: str
    """Of the mean loss in the metrics of a step, such as `next_token`."""

    def batch_shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Returns the arrays of a global batch; needs no data.

        Only the second axis of `[B, S]` are positions, which a mesh divides; `[B]` and `[B, P, W]`
        are divided by rows alone.
        """

    def loss(
        self, model: Decoder, batch: Mapping[str, Any], random_keys: Key[Array, "B"] | None
    ) -> Totals:
        """Returns sums over a batch, or over a part of its rows; differentiable in the model.

        Args:
          model: with parameters, inside of the compiled step.
          batch: of the arrays of `batch_shapes`, of all rows or of those of a microbatch.
          random_keys: one for each row, of sampled routing and dropout; None: nothing is drawn.
        """

    def metadata(self) -> Metadata:
        """Returns what checkpoints say about the run, all but the position in the data.

        Its `run` is the identity: a run goes on only from checkpoints of the same one.

        Raises:
          InputError: the data cannot be opened.
        """

    def tokenizer(self) -> Tokenizer | None:
        """Returns the tokenizer that is saved beside the checkpoints, if there is one."""

    def batches(self, mesh: Mesh) -> Batches:
        """Returns the training batches from the first row on.

        Raises:
          InputError: the data do not suit the run.
        """

    def work(self, batch: LocalBatch) -> Work:
        """Returns the size of a global batch, judged by this process's rows of it."""

    def evaluation(self, mesh: Mesh) -> Evaluate:
        """Returns the function that evaluates parameters on held-out data.

        Raises:
          InputError: there are none, or they do not suit the mesh.
        """
