import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modbrick.data.mixture import PERIOD, Interleaving

SHARES = st.lists(st.floats(1e-6, 1.0), min_size=1, max_size=6)


@settings(max_examples=30, deadline=None)
@given(SHARES)
def test_a_period_holds_the_shares(shares):
    interleaving = Interleaving(shares)
    domains = [interleaving.locate(row)[0] for row in range(PERIOD)]
    exact = np.asarray(shares) / np.sum(shares) * PERIOD
    counts = np.bincount(domains, minlength=len(shares))
    assert counts.sum() == PERIOD
    assert (counts >= 1).all()
    # A domain that is owed less than a row gets one; the others pay for it.
    assert np.abs(counts - exact).max() <= len(shares)


@settings(max_examples=20, deadline=None)
@given(SHARES, st.integers(0, 3 * PERIOD))
def test_rows_of_a_domain_are_numbered_without_gaps(shares, first):
    interleaving = Interleaving(shares)
    last: dict[int, int] = {}
    for row in range(first, first + 500):
        domain, number = interleaving.locate(row)
        assert number == last.get(domain, number - 1) + 1
        assert interleaving.rows_until(domain, number) == row
        last[domain] = number


@pytest.mark.parametrize("length", [50, 333, 5000])
def test_any_stretch_is_in_proportion(length):
    shares = np.asarray([0.55, 0.3, 0.1, 0.05])
    interleaving = Interleaving(shares.tolist())
    for first in (0, 1234, PERIOD - 40):
        domains = [interleaving.locate(row)[0] for row in range(first, first + length)]
        assert np.abs(np.bincount(domains, minlength=4) - shares * length).max() <= 4
