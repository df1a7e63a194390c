"""Batches for training: rows of the global plan, read, packed and prefetched by Grain.

A batch is a dict of int32 arrays [b, S], of the rows that this process reads:

    tokens        inputs
    targets       the id that follows each input in its document
    segment_ids   1, 2, ... by piece within the row; 0 is padding
    positions     0, 1, ... within each piece (a document that is cut starts at 0 in its next row)
    loss_mask     1 where the target counts, 0 on padding
    domains       index of the document's domain, where they are asked for

A position that is not padding always has its target in the same document: nothing is predicted
across documents, and no position is spent on a document's last id.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import grain
import numpy as np
from absl import flags
from jaxtyping import Int32

from modbrick.data.config import DataConfig
from modbrick.data.dataset import Dataset, Documents
from modbrick.data.packing import Piece
from modbrick.data.row_plan import RowPlan
from modbrick.errors import InputError

Batch = Mapping[str, Int32[np.ndarray, "B S"]]
FIELDS = ("tokens", "targets", "segment_ids", "positions", "loss_mask")
DOMAINS = "domains"

# Grain wants a length; nobody trains for so many rows.
_ENDLESS = 1 << 60


def training_batches(
    dataset: Dataset,
    config: DataConfig,
    *,
    start_row: int = 0,
    rows: Sequence[int] | None = None,
    domains: bool = False,
) -> TrainingBatches:
    """Returns an iterator over this process's rows of each global batch.

    Global batch i holds rows `start_row + i B` to `start_row + (i + 1) B` of the plan, whoever
    reads which of them. The last batch of a finite plan is filled up with empty rows, on all
    processes alike.

    Args:
      dataset: an open data set.
      config: which rows, in which order.
      start_row: of the plan, where the first batch begins.
      rows: which rows of each global batch to read, from 0 to B - 1; None: all.
      domains: whether batches say of which domain each position is.

    Raises:
      InputError: no training documents, or a misspelt domain.
    """
    documents = dataset.documents("train")
    chosen = check_rows(rows, config.batch_size)
    packing = PackRow(documents, config.sequence_length, domains=domains)
    return TrainingBatches(RowPlan(documents, config), packing, config, start_row, chosen)


def check_rows(rows: Sequence[int] | None, batch_size: int) -> tuple[int, ...]:
    """Returns the rows of a global batch to read: those named, or all.

    Raises:
      ValueError: none, or some outside the batch.
    """
    chosen = tuple(range(batch_size)) if rows is None else tuple(int(row) for row in rows)
    if not chosen or not 0 <= min(chosen) <= max(chosen) < batch_size:
        raise ValueError(f"rows {chosen} of a batch of {batch_size}")
    return chosen


def data_identity(dataset: Dataset, config: DataConfig) -> dict[str, Any]:
    """Returns, as JSON-able data, everything that decides which batches come in which order.

    Where the data set lies, the processes, the workers and the prefetching are not part of it.
    """
    return {"dataset": dataset.fingerprint, **config.identity()}


class TrainingBatches(Iterator[Batch]):
    """Iterator over local batches; its whole state is the number of the next global row."""

    def __init__(
        self,
        plan: RowPlan,
        packing: PackRow,
        config: DataConfig,
        start_row: int,
        rows: tuple[int, ...],
    ):
        self.plan = plan
        self.rows = rows
        self._packing = packing
        self._config = config
        # Grain's iterator, once there is one. It is closed at exit even where nobody closes it:
        # once modules are torn down it cannot stop its workers.
        self._running: list[grain.DatasetIterator[Batch]] = []
        weakref.finalize(self, _stop, self._running)
        self.set_state(start_row)

    def __next__(self) -> Batch:
        if not self._running:
            self._running.append(self._start())
        batch = next(self._running[0])
        self._row += self._config.batch_size
        return batch

    def get_state(self) -> int:
        """Returns the number of the first row of the next global batch."""
        return self._row

    def set_state(self, row: int) -> None:
        """Continues with the global batch that begins at `row`."""
        if row < 0:
            raise InputError(f"the data position must be a row number from 0, got {row}")
        self.close()
        self._row = int(row)

    def close(self) -> None:
        """Stops the workers and threads; the iterator may still be used, and starts them again."""
        _stop(self._running)

    def __enter__(self) -> TrainingBatches:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self) -> grain.DatasetIterator[Batch]:
        config = self._config
        rows = _LocalRows(self.plan, self._row, config.batch_size, self.rows)
        # Workers read ahead by themselves: no threads within them.
        threads = 0 if config.workers else min(config.prefetch, 4)
        reading = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=config.prefetch)
        dataset = (
            grain.MapDataset.source(rows)
            .map(self._packing)
            .batch(len(self.rows))
            .to_iter_dataset(reading)
        )
        if config.workers:
            if not flags.FLAGS.is_parsed():  # Grain's workers read flags, also without absl.app
                flags.FLAGS.mark_as_parsed()
            # Batches come through pipes: memory shared with a worker can outlive it.
            dataset = grain.experimental.WithOptionsIterDataset(
                dataset, grain.experimental.DatasetOptions(min_shm_size=_ENDLESS)
            )
            options = grain.MultiprocessingOptions(
                num_workers=config.workers, per_worker_buffer_size=config.prefetch
            )
            # Each worker makes whole batches, in turns: their number changes nothing in them.
            dataset = dataset.mp_prefetch(options)
        return iter(dataset)


def _stop(running: list[grain.DatasetIterator[Batch]]) -> None:
    while running:
        running.pop().close()


class _LocalRows:
    """The rows of one process, batch after batch, from `start` on."""

    def __init__(self, plan: RowPlan, start: int, batch: int, rows: tuple[int, ...]):
        self._plan, self._start, self._batch, self._rows = plan, start, batch, rows

    def __len__(self) -> int:
        local = len(self._rows)
        if self._plan.rows is None:
            return _ENDLESS // local * local
        return -(-max(self._plan.rows - self._start, 0) // self._batch) * local

    def __getitem__(self, index: int) -> list[Piece]:
        step, row = divmod(index, len(self._rows))
        return self._plan.pieces(self._start + step * self._batch + self._rows[row])


class PackRow(grain.transforms.Map):
    """Reads the pieces of a row and lays them out in `sequence_length` positions."""

    def __init__(self, documents: Documents, sequence_length: int, *, domains: bool = False):
        self._documents, self._length = documents, sequence_length
        self._fields = (*FIELDS, DOMAINS) if domains else FIELDS

    def map(self, element: Sequence[Piece]) -> dict[str, Int32[np.ndarray, " S"]]:
        """Returns the fields of the row whose pieces are given."""
        row = {field: np.zeros(self._length, np.int32) for field in self._fields}
        at = 0
        for segment, piece in enumerate(element, start=1):
            ids = self._documents.read(piece.document, piece.start, piece.stop + 1)
            count = len(ids) - 1
            here = slice(at, at + count)
            row["tokens"][here] = ids[:-1]
            row["targets"][here] = ids[1:]
            row["segment_ids"][here] = segment
            row["positions"][here] = np.arange(count)
            row["loss_mask"][here] = 1
            if DOMAINS in row:
                row[DOMAINS][here] = self._documents.domain_of(piece.document)
            at += count
        return row
