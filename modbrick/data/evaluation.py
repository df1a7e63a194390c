"""Batches for evaluation: every target of every document exactly once, with exact byte counts.

Batches are those of training (`modbrick.data.batches`), and one more array: `domains`, the index of
each position's domain in `EvaluationBatches.domains` (0 on padding, where `loss_mask` is 0).

Bits per byte of a domain = sum of the losses in nats of its targets / ln 2 / `scored_bytes` of the
domain. The end of a document is a target too: its cost is part of the text's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from jaxtyping import Int64

from modbrick.data.batches import Batch, PackRow, check_rows
from modbrick.data.dataset import Dataset, Documents
from modbrick.data.manifest import Split
from modbrick.data.packing import Piece, Shuffler, best_fit
from modbrick.errors import InputError


class EvaluationBatches:
    """The batches, as often as they are asked for, and what they hold.

    Attributes:
      domains: names, in the order of the indices in `batch["domains"]`.
      batch_size: rows of a global batch, B.
      rows: which of them are read here.
      documents, tokens, scored_bytes: by domain: how many documents, targets and UTF-8 bytes that
        the targets stand for.
    """

    def __init__(
        self,
        documents: Documents,
        chosen: Int64[np.ndarray, " N"],
        sequence_length: int,
        batch_size: int,
        context: int,
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
        scored = documents.bytes - documents.unscored_bytes
        for name, first, last in zip(
            documents.domains, documents.first[:-1], documents.first[1:], strict=True
        ):
            of_domain = chosen[(chosen >= first) & (chosen < last)]
            self.documents[name] = len(of_domain)
            self.tokens[name] = int(documents.targets[of_domain].sum())
            self.scored_bytes[name] = int(scored[of_domain].sum())
        self._rows = _pack(documents.targets, chosen, sequence_length, context)

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
      max_tokens: evaluate a fixed random choice of whole documents, the same share of each domain,
        with about so many targets (at least one document a domain); None: all.
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
    chosen = np.arange(len(documents))
    if max_tokens is not None:
        chosen = _choose(documents, max_tokens)
    return EvaluationBatches(
        documents, chosen, sequence_length, batch_size, context, check_rows(rows, batch_size)
    )


def _choose(documents: Documents, max_tokens: int) -> Int64[np.ndarray, " N"]:
    share = min(1.0, max_tokens / max(int(documents.targets.sum()), 1))
    chosen = []
    for name, first, last in zip(
        documents.domains, documents.first[:-1], documents.first[1:], strict=True
    ):
        order = first + Shuffler(0, name, True).order(0, 0, last - first)
        counts = documents.targets[order]
        before = np.cumsum(counts) - counts
        chosen.append(order[before < max(share * int(counts.sum()), 1)])
    return np.sort(np.concatenate(chosen))


def _pack(
    targets: Int64[np.ndarray, " N"], chosen: Int64[np.ndarray, " N"], length: int, context: int
) -> Mapping[int, list[tuple[Piece, int]]]:
    """Returns the rows: pieces with how many of their first positions are context."""
    pieces = []
    for document in chosen.tolist():
        stop = start = 0
        while stop < targets[document]:
            start = max(stop - context, 0)
            before, stop = stop - start, min(start + length, int(targets[document]))
            pieces.append((Piece(document, start, stop), before))
    lengths = np.asarray([piece.stop - piece.start for piece, _ in pieces])
    order = np.argsort(-lengths, kind="stable")
    rows: dict[int, list[tuple[Piece, int]]] = {}
    for item, row in zip(order.tolist(), best_fit(lengths[order], length).tolist(), strict=True):
        rows.setdefault(row, []).append(pieces[item])
    return rows
