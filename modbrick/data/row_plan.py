"""The global order of rows: which pieces of which documents make row r, for any r."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from modbrick.data.config import DataConfig
from modbrick.data.dataset import Documents
from modbrick.data.mixture import Interleaving
from modbrick.data.packing import BestFitRows, ConcatenatedRows, Piece, Rows, Shuffler
from modbrick.errors import InputError
from modbrick.schema import nearest


class RowPlan:
    """A deterministic sequence of packed rows that any process can index.

    It follows from the documents' lengths and the config's identity alone: not from processes,
    workers, or what was read before. Without a mixture all documents form one pool, each once an
    epoch. With one, each domain runs through its own epochs, and rows of the domains are
    interleaved so that *tokens* come in the shares asked for (rows of best-fit packing hold
    different numbers of tokens by domain; that is allowed for). A row of a mixture holds documents
    of one domain only.

    Args:
      documents: of the split to be read.
      config: see `DataConfig`.

    Raises:
      InputError: the mixture names a domain that is not there.
    """

    def __init__(self, documents: Documents, config: DataConfig):
        self.sequence_length = config.sequence_length
        self._streams: list[Rows] = []
        self._epochs: list[tuple[tuple[str, ...], int]] = []  # domains of a stream, and its targets
        names = [None] if config.mixture is None else sorted(config.mixture)
        for name in names:
            numbers = _members(documents, name)
            targets = documents.targets[numbers]
            shuffler = Shuffler(config.seed, name or "", config.shuffle)
            if config.packing == "best_fit":
                stream: Rows = BestFitRows(numbers, targets, self.sequence_length, shuffler)
            else:
                stream = ConcatenatedRows(
                    numbers, targets, self.sequence_length, shuffler, config.epochs
                )
            self._streams.append(stream)
            self._epochs.append(
                (documents.domains if name is None else (name,), int(targets.sum()))
            )
        shares = [1.0] if config.mixture is None else _normalised(config.mixture, names)
        self._interleaving = Interleaving(
            [
                share / stream.targets_per_row
                for share, stream in zip(shares, self._streams, strict=True)
            ]
        )
        self.rows: int | None = None
        if config.epochs is not None:
            self.rows = min(
                self._interleaving.rows_until(i, stream.count(config.epochs))
                for i, stream in enumerate(self._streams)
            )

    def repetitions(self, rows: int) -> dict[str, float]:
        """Returns how often the targets of each domain come in the first `rows` rows: epochs."""
        if self.rows is not None:
            rows = min(rows, self.rows)
        found: dict[str, float] = {}
        for index, (stream, (domains, targets)) in enumerate(
            zip(self._streams, self._epochs, strict=True)
        ):
            read = self._interleaving.count(index, rows) * stream.targets_per_row
            found |= dict.fromkeys(domains, read / targets)
        return found

    def pieces(self, row: int) -> list[Piece]:
        """Returns the pieces of a row, in order; none beyond the end of a finite plan."""
        if row < 0:
            raise IndexError(f"row {row} is negative")
        if self.rows is not None and row >= self.rows:
            return []
        stream, number = self._interleaving.locate(row)
        return self._streams[stream].row(number)


def _members(documents: Documents, name: str | None) -> np.ndarray:
    if name is None:
        return np.arange(len(documents))
    if name not in documents.domains:
        raise InputError(
            f"data mixture names the domain {name!r}, which {documents.name} does not have; "
            f"{nearest(name, documents.domains)}"
        )
    at = documents.domains.index(name)
    return np.arange(documents.first[at], documents.first[at + 1])


def _normalised(mixture: Mapping[str, float], names: list) -> list[float]:
    total = sum(mixture.values())
    return [mixture[name] / total for name in names]
