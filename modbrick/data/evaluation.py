"""Batches for evaluation: every target of every document exactly once, or a fair choice of them.

Batches are those of training (`modbrick.data.batches`), and one more array: `domains`, the index of
each position's domain in `EvaluationBatches.domains` (0 on padding, where `loss_mask` is 0).

Bits per byte of a domain = sum of the losses in nats of its targets / ln 2 / `scored_bytes` of the
domain. The end of a document is a target too: its cost is part of the text's.

A choice is of the pieces that documents are cut into, each as likely as any other, and each is
scored as it would be if all were: what it says about the mean loss is off by chance only. (Whole
documents would be few where they are long; shorter spans would have less context than usual.)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from jaxtyping import Int64

from modbrick.data.batches import Batch, PackRow, check_rows
from modbrick.data.dataset import Dataset, Documents
from modbrick.data.manifest import Split
from modbrick.data.packing import Piece, Shuffler, best_fit
from modbrick.errors import InputError


@dataclasses.dataclass(frozen=True)
class _Pieces:
    """Pieces of documents.

    Attributes:
      document: of each, [P].
      start, stop: of its positions in the document, [P].
      context: how many of the first positions do not count, [P].
    """

    document: Int64[np.ndarray, " P"]
    start: Int64[np.ndarray, " P"]
    stop: Int64[np.ndarray, " P"]
    context: Int64[np.ndarray, " P"]


class EvaluationBatches:
    """The batches, as often as they are asked for, and what they hold.

    Attributes:
      domains: names, in the order of the indices in `batch["domains"]`.
      batch_size: rows of a global batch, B.
      rows: which of them are read here.
      documents, tokens, scored_bytes: by domain: how many documents, targets and UTF-8 bytes that
        the targets stand for. Of a part of a document these bytes are its share of the document's.
      all_documents, all_tokens: by domain: how many there are in the split.
    """

    def __init__(
        self,
        documents: Documents,
        pieces: _Pieces,
        sequence_length: int,
        batch_size: int,
        rows: tuple[int, ...],
    ):
        self._source = documents
        self._length = sequence_length
        self.batch_size = batch_size
        self.rows = rows
        self.domains = documents.domains
        self.documents: dict[str, int] = {}
        self.tokens: dict[str, int] = {}
        self.scored_bytes: dict[str, int] = {}
        self.all_documents: dict[str, int] = {}
        self.all_tokens: dict[str, int] = {}
        counted = pieces.stop - pieces.start - pieces.context
        scored = documents.bytes - documents.unscored_bytes
        share = counted / np.maximum(documents.targets, 1)[pieces.document]
        scored = scored[pieces.document] * share
        for name, first, last in _bounds(documents):
            here = (pieces.document >= first) & (pieces.document < last)
            self.documents[name] = len(np.unique(pieces.document[here]))
            self.tokens[name] = int(counted[here].sum())
            self.scored_bytes[name] = round(float(scored[here].sum()))
            self.all_documents[name] = last - first
            self.all_tokens[name] = int(documents.targets[first:last].sum())
        self._rows = _pack(pieces, sequence_length)

    def __len__(self) -> int:
        return -(-len(self._rows) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        for first in range(0, len(self._rows), self.batch_size):
            rows = [first + row for row in self.rows]
            made = [self._row(self._rows[r] if r < len(self._rows) else []) for r in rows]
            yield {field: np.stack([row[field] for row in made]) for field in made[0]}

    def _row(self, pieces: list[tuple[Piece, int]]) -> dict[str, np.ndarray]:
        packing = PackRow(self._source, self._length, domains=True)
        row = packing.map([piece for piece, _ in pieces])
        at = 0
        for piece, context in pieces:
            row["loss_mask"][at : at + context] = 0
            at += piece.stop - piece.start
        return row


def evaluation_batches(
    dataset: Dataset,
    *,
    sequence_length: int,
    batch_size: int,
    split: Split = "held_out",
    context: int = 0,
    max_tokens: int | None = None,
    rows: Sequence[int] | None = None,
) -> EvaluationBatches:
    """Returns batches in which every target of the split counts exactly once.

    A document that fits a row is whole in it. A longer one is cut; each further row starts with
    `context` ids that were seen before and do not count, so that its first targets are not
    predicted from nothing.

    Args:
      dataset: an open data set.
      sequence_length: positions in a row, S.
      batch_size: rows of a global batch, B, over all processes; the last one is filled with empty
        rows.
      split: which documents.
      context: ids repeated at a cut; less than `sequence_length`.
      max_tokens: evaluate a choice of pieces of all documents, the same share of each domain and
        the same whenever it is made, with about so many targets (at least one piece a domain);
        None: all.
      rows: which rows of each global batch to read, from 0 to B - 1; None: all.

    Raises:
      InputError: the split is empty, or the numbers do not fit together.
    """
    if not 0 <= context < sequence_length:
        raise InputError(
            f"evaluation context must be from 0 to sequence_length - 1 ({sequence_length - 1}), "
            f"got {context}"
        )
    if batch_size < 1:
        raise InputError(f"evaluation batch_size must be at least 1, got {batch_size}")
    documents = dataset.documents(split)
    starts = _first_pieces(documents, sequence_length, context)
    numbers = (
        np.arange(starts[-1]) if max_tokens is None else _choose(documents, starts, max_tokens)
    )
    pieces = _cut(documents, starts, numbers, sequence_length, context)
    return EvaluationBatches(
        documents, pieces, sequence_length, batch_size, check_rows(rows, batch_size)
    )


def _bounds(documents: Documents) -> Iterator[tuple[str, int, int]]:
    """Yields each domain with the numbers of its first document and of the one after its last."""
    yield from zip(documents.domains, documents.first[:-1], documents.first[1:], strict=True)


def _first_pieces(documents: Documents, length: int, context: int) -> Int64[np.ndarray, " N+1"]:
    """Returns the number of the first piece of each document, and of all pieces."""
    rest = np.maximum(documents.targets - length, 0)
    counts = np.where(documents.targets > 0, 1 - (-rest // (length - context)), 0)
    return np.concatenate([[0], np.cumsum(counts)])


def _choose(
    documents: Documents, starts: Int64[np.ndarray, " N+1"], max_tokens: int
) -> Int64[np.ndarray, " P"]:
    """Returns numbers of pieces: one, drawn at random, of each stretch of equally many.

    So they lie spread over the documents, and never in step with what repeats in these.
    """
    share = min(1.0, max_tokens / max(int(documents.targets.sum()), 1))
    chosen = []
    for name, first, last in _bounds(documents):
        begin, count = int(starts[first]), int(starts[last] - starts[first])
        stretches = min(count, max(round(share * count), 1))
        edges = np.arange(stretches + 1) * count // max(stretches, 1)
        sizes = np.diff(edges)
        draws = Shuffler(0, name, True).keys(0, 0, stretches)
        chosen.append(begin + edges[:-1] + (draws % sizes.astype(np.uint64)).astype(np.int64))
    return np.concatenate(chosen)


def _cut(
    documents: Documents,
    starts: Int64[np.ndarray, " N+1"],
    numbers: Int64[np.ndarray, " P"],
    length: int,
    context: int,
) -> _Pieces:
    """Returns the pieces of these numbers."""
    document = np.searchsorted(starts, numbers, side="right") - 1
    place = numbers - starts[document]  # within the document
    start = place * (length - context)
    stop = np.minimum(start + length, documents.targets[document])
    return _Pieces(document, start, stop, np.where(place > 0, context, 0))


def _pack(pieces: _Pieces, length: int) -> Mapping[int, list[tuple[Piece, int]]]:
    """Returns the rows: pieces with how many of their first positions are context."""
    lengths = pieces.stop - pieces.start
    order = np.argsort(-lengths, kind="stable")
    rows: dict[int, list[tuple[Piece, int]]] = {}
    columns = (pieces.document, pieces.start, pieces.stop, pieces.context)
    of_rows = best_fit(lengths[order], length).tolist()
    values = (column[order].tolist() for column in columns)
    for row, document, start, stop, context in zip(of_rows, *values, strict=True):
        rows.setdefault(row, []).append((Piece(document, start, stop), context))
    return rows
