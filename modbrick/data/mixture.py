"""Interleaves rows of several domains by fixed shares; any row can be asked for directly."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# Rows in one period. Shares are exact to half a row, 1 in 131,072.
PERIOD = 65_536


class Interleaving:
    """A periodic, evenly spread sequence of domain numbers.

    Within a period, the k-th of q rows of a domain stands as near as possible to (k + 1/2) / q of
    the period: any stretch of rows holds each domain in proportion, give or take a row or two a
    domain.

    Args:
      shares: of the rows, by domain; positive; divided by their sum.
    """

    def __init__(self, shares: Sequence[float]):
        self._quotas = _quotas(np.asarray(shares, np.float64))
        numbers = np.repeat(np.arange(len(shares)), self._quotas)
        ranks = np.concatenate([np.arange(q) for q in self._quotas])
        places = (2 * ranks + 1) / (2 * self._quotas[numbers])
        order = np.lexsort((numbers, places))
        self._domain = numbers[order]
        self._rank = ranks[order]

    def locate(self, row: int) -> tuple[int, int]:
        """Returns the domain of a row, and which row of that domain it is."""
        period, place = divmod(row, PERIOD)
        domain = int(self._domain[place])
        return domain, period * int(self._quotas[domain]) + int(self._rank[place])

    def count(self, domain: int, rows: int) -> int:
        """Returns how many of the first `rows` rows are of `domain`."""
        periods, rest = divmod(rows, PERIOD)
        of_rest = int(np.count_nonzero(self._domain[:rest] == domain))
        return periods * int(self._quotas[domain]) + of_rest

    def rows_until(self, domain: int, count: int) -> int:
        """Returns how many rows there are before row `count` of `domain` (counted from 0)."""
        period, rank = divmod(count, int(self._quotas[domain]))
        places = np.flatnonzero(self._domain == domain)
        return period * PERIOD + int(places[rank])


def _quotas(shares: np.ndarray) -> np.ndarray:
    """Returns rows by domain, at least one each, `PERIOD` in all (largest remainders)."""
    exact = shares / shares.sum() * PERIOD
    quotas = np.maximum(np.floor(exact).astype(np.int64), 1)
    while (missing := PERIOD - int(quotas.sum())) != 0:
        step = 1 if missing > 0 else -1
        # A domain held up at one row has a large excess: it must not be cut to none.
        rest = np.where((quotas > 1) | (step > 0), (exact - quotas) * step, -np.inf)
        quotas[np.argsort(-rest, kind="stable")[: min(abs(missing), len(quotas))]] += step
    return quotas
