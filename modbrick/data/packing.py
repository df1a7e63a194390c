"""Packs documents into rows of S targets, epoch after epoch, with every row at hand by its number.

Both packings see documents only as numbers of targets. They hold a few arrays with one entry a
document, and no epoch needs the one before it.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import numpy as np
from jaxtyping import Int64


class Piece(NamedTuple):
    """Targets `start` to `stop` (exclusive) of a document; ids `start` to `stop` inclusive."""

    document: int
    start: int
    stop: int


class Rows(Protocol):
    """An endless sequence of packed rows."""

    def row(self, number: int) -> list[Piece]:
        """Returns the pieces of a row."""
        ...

    def count(self, epochs: int) -> int:
        """Returns how many rows so many epochs take."""
        ...

    @property
    def targets_per_row(self) -> float:
        """Mean number of targets in a row."""
        ...


class Shuffler:
    """Random orders that depend on a seed, a name, an epoch and a purpose, and on nothing else.

    Only raw output of a bit generator is used, which NumPy promises never to change (its
    `permutation` comes without that promise).
    """

    def __init__(self, seed: int, name: str, enabled: bool):
        digest = hashlib.sha256(name.encode("utf-8")).digest()
        self._entropy = [seed, *np.frombuffer(digest[:16], "<u4").tolist()]
        self._enabled = enabled

    def keys(self, purpose: int, epoch: int, count: int) -> np.ndarray:
        """Returns `count` sort keys: random, or all zero if shuffling is off."""
        if not self._enabled:
            return np.zeros(count, np.uint64)
        sequence = np.random.SeedSequence([*self._entropy, purpose, epoch])
        return np.random.PCG64(sequence).random_raw(count)

    def order(self, purpose: int, epoch: int, count: int) -> Int64[np.ndarray, " N"]:
        """Returns a random order of `count` things, or their own order if shuffling is off."""
        return np.argsort(self.keys(purpose, epoch, count), kind="stable")


_DOCUMENTS, _ROWS = 0, 1


class ConcatenatedRows:
    """Documents joined end to end and cut every S targets; the stream runs on through the epochs.

    The rows that begin in an epoch are shuffled among themselves, so that the parts of a long
    document do not follow each other.

    Args:
      documents: numbers of the documents.
      targets: of each document, at least 1.
      sequence_length: S.
      shuffler: gives the orders.
      epochs: end of the stream; None: without end.
    """

    def __init__(
        self,
        documents: Int64[np.ndarray, " N"],
        targets: Int64[np.ndarray, " N"],
        sequence_length: int,
        shuffler: Shuffler,
        epochs: int | None = None,
    ):
        self._documents, self._targets = documents, targets
        self._length = sequence_length
        self._shuffler = shuffler
        self._total = int(targets.sum())
        self._end = None if epochs is None else epochs * self._total
        self._documents_of = _Cache(self._arrange)
        self._rows_of = _Cache(self._arrange_rows)

    @property
    def targets_per_row(self) -> float:
        """Mean number of targets in a row."""
        return float(self._length)

    def count(self, epochs: int) -> int:
        """Returns how many rows so many epochs take."""
        return -(-epochs * self._total // self._length)

    def row(self, number: int) -> list[Piece]:
        """Returns the pieces of a row."""
        epoch = number * self._length // self._total
        first, order = self._rows_of(epoch)
        start = (first + int(order[number - first])) * self._length
        stop = start + self._length
        if self._end is not None:
            stop = min(stop, self._end)
        pieces = []
        while start < stop:
            epoch, offset = divmod(start, self._total)
            documents, ends = self._documents_of(epoch)
            at = int(np.searchsorted(ends, offset, side="right"))
            document = int(documents[at])
            begin = offset - int(ends[at]) + int(self._targets[document])
            take = min(int(ends[at]) - offset, stop - start)
            pieces.append(Piece(int(self._documents[document]), begin, begin + take))
            start += take
        return pieces

    def _arrange(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        order = self._shuffler.order(_DOCUMENTS, epoch, len(self._targets))
        return order, np.cumsum(self._targets[order])

    def _arrange_rows(self, epoch: int) -> tuple[int, np.ndarray]:
        first = self.count(epoch)  # rows that begin before this epoch
        return first, self._shuffler.order(_ROWS, epoch, self.count(epoch + 1) - first)


class BestFitRows:
    """Documents whole in one row where they fit (arXiv 2404.10830, best-fit decreasing).

    Documents longer than S are cut every S targets first. Which lengths share a row follows from
    the lengths alone and is found once; an epoch only decides which of the equally long chunks goes
    where, and the order of rows. So every epoch has the same number of rows.

    Arguments as of `ConcatenatedRows`.
    """

    def __init__(
        self,
        documents: Int64[np.ndarray, " N"],
        targets: Int64[np.ndarray, " N"],
        sequence_length: int,
        shuffler: Shuffler,
    ):
        counts = -(-targets // sequence_length)
        owners = np.repeat(np.arange(len(targets)), counts)
        firsts = np.repeat(np.cumsum(counts) - counts, counts)
        self._starts = (np.arange(len(owners)) - firsts) * sequence_length
        self._lengths = np.minimum(targets[owners] - self._starts, sequence_length)
        self._owners = documents[owners]
        self._shuffler = shuffler
        rows = best_fit(np.sort(self._lengths)[::-1], sequence_length)
        self._members = np.argsort(rows, kind="stable")
        self._bounds = np.concatenate([[0], np.cumsum(np.bincount(rows))])
        self._total = int(targets.sum())
        self._chunks_of = _Cache(self._arrange)
        self._rows_of = _Cache(self._arrange_rows)

    @property
    def targets_per_row(self) -> float:
        """Mean number of targets in a row."""
        return self._total / self.count(1)

    def count(self, epochs: int) -> int:
        """Returns how many rows so many epochs take."""
        return epochs * (len(self._bounds) - 1)

    def row(self, number: int) -> list[Piece]:
        """Returns the pieces of a row."""
        epoch, place = divmod(number, self.count(1))
        row = int(self._rows_of(epoch)[place])
        chunks = self._chunks_of(epoch)[self._members[self._bounds[row] : self._bounds[row + 1]]]
        return [
            Piece(owner, start, start + length)
            for owner, start, length in zip(
                self._owners[chunks].tolist(),
                self._starts[chunks].tolist(),
                self._lengths[chunks].tolist(),
                strict=True,
            )
        ]

    def _arrange(self, epoch: int) -> np.ndarray:
        keys = self._shuffler.keys(_DOCUMENTS, epoch, len(self._lengths))
        return np.lexsort((keys, -self._lengths))

    def _arrange_rows(self, epoch: int) -> np.ndarray:
        return self._shuffler.order(_ROWS, epoch, self.count(1))


def best_fit(lengths: Int64[np.ndarray, " N"], capacity: int) -> Int64[np.ndarray, " N"]:
    """Assigns items to as few rows as best-fit decreasing finds.

    Each item goes to the row with the least room that is enough. Equal items and equal rows are
    handled together, so the time depends on the number of different lengths more than on the number
    of items.

    Args:
      lengths: of the items, from long to short, each from 1 to `capacity`.
      capacity: of a row.

    Returns:
      The row of each item; rows are numbered from 0 without gaps.
    """
    assigned = np.empty(len(lengths), np.int64)
    open_rows: dict[int, list[np.ndarray]] = {}  # room -> rows with that room
    rooms = 0  # bit r is set: there are rows with room r
    created = at = 0
    values, counts = np.unique(-lengths, return_counts=True)
    for length, left in zip((-values).tolist(), counts.tolist(), strict=True):
        while left:
            if above := rooms >> length:
                room = length + (above & -above).bit_length() - 1
                group = open_rows.pop(room)
                rows = group[0] if len(group) == 1 else np.concatenate(group)
                rooms &= ~(1 << room)
            else:  # no row has room: open as many as these items fill
                room = capacity
                needed = -(-left // (capacity // length))
                rows = np.arange(created, created + needed)
                created += needed
            each = room // length
            full, over = divmod(min(left, each * len(rows)), each)
            taken = full * each + over
            assigned[at : at + taken] = np.repeat(rows, each)[:taken]
            at += taken
            left -= taken
            touched = full + (over > 0)
            for some, rest in (
                (rows[:full], room - each * length),
                (rows[full:touched], room - over * length),
                (rows[touched:], room),
            ):
                if len(some) and rest:
                    open_rows.setdefault(rest, []).append(some)
                    rooms |= 1 << rest
    return assigned


class _Cache:
    """Keeps what belongs to the last few epochs; safe under threads, empty again after pickling."""

    def __init__(self, make: Callable[[int], Any], size: int = 3):
        self._make, self._size = make, size
        self._reset()

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._kept: OrderedDict[int, Any] = OrderedDict()

    def __call__(self, epoch: int) -> Any:
        with self._lock:
            if epoch not in self._kept:
                if len(self._kept) >= self._size:
                    self._kept.popitem(last=False)
                self._kept[epoch] = self._make(epoch)
            self._kept.move_to_end(epoch)
            return self._kept[epoch]

    def __getstate__(self) -> dict[str, Any]:
        return {"_make": self._make, "_size": self._size}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._reset()
