import pickle
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modbrick.data.packing import BestFitRows, ConcatenatedRows, Shuffler, best_fit

LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=30)
WIDTH = st.integers(1, 24)


def concatenated(lengths, width, shuffle=True, epochs=None, seed=0):
    numbers = np.arange(len(lengths)) + 100
    shuffler = Shuffler(seed, "", shuffle)
    return ConcatenatedRows(numbers, np.asarray(lengths), width, shuffler, epochs)


def best_fitted(lengths, width, shuffle=True, seed=0):
    numbers = np.arange(len(lengths)) + 100
    return BestFitRows(numbers, np.asarray(lengths), width, Shuffler(seed, "", shuffle))


def covered(rows, numbers):
    return Counter(
        (piece.document, target)
        for number in numbers
        for piece in rows.row(number)
        for target in range(piece.start, piece.stop)
    )


def every_target(lengths, times=1):
    return {(100 + d, t): times for d, length in enumerate(lengths) for t in range(length)}


@settings(max_examples=60, deadline=None)
@given(LENGTHS, WIDTH, st.integers(1, 3), st.booleans())
def test_concatenated_rows_hold_every_target_once_an_epoch(lengths, width, epochs, shuffle):
    rows = concatenated(lengths, width, shuffle, epochs)
    assert covered(rows, range(rows.count(epochs))) == every_target(lengths, epochs)


@settings(max_examples=60, deadline=None)
@given(LENGTHS, WIDTH)
def test_concatenated_rows_are_full(lengths, width):
    rows = concatenated(lengths, width)
    for number in range(3 * rows.count(1)):
        assert sum(p.stop - p.start for p in rows.row(number)) == width


@settings(max_examples=60, deadline=None)
@given(LENGTHS, WIDTH, st.booleans())
def test_best_fit_rows_hold_every_target_once_in_each_epoch(lengths, width, shuffle):
    rows = best_fitted(lengths, width, shuffle)
    for epoch in range(3):
        numbers = range(rows.count(epoch), rows.count(epoch + 1))
        assert covered(rows, numbers) == every_target(lengths)


@settings(max_examples=60, deadline=None)
@given(LENGTHS, WIDTH)
def test_best_fit_keeps_documents_whole_and_cuts_long_ones_at_full_rows(lengths, width):
    rows = best_fitted(lengths, width)
    pieces = [piece for number in range(rows.count(1)) for piece in rows.row(number)]
    assert len(pieces) == sum(-(-length // width) for length in lengths)
    for piece in pieces:
        assert piece.start % width == 0
    for number in range(rows.count(1)):
        assert 0 < sum(p.stop - p.start for p in rows.row(number)) <= width


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 24), min_size=1, max_size=60), st.integers(24, 40))
def test_best_fit_equals_the_plain_algorithm(lengths, capacity):
    lengths = sorted(lengths, reverse=True)
    room: list[int] = []
    for length in lengths:
        fitting = [r for r in range(len(room)) if room[r] >= length]
        if not fitting:
            room.append(capacity)
            fitting = [len(room) - 1]
        room[min(fitting, key=lambda r: room[r])] -= length
    found = best_fit(np.asarray(lengths), capacity)
    used = np.bincount(found, weights=lengths)
    assert sorted(capacity - used) == sorted(room)


@pytest.mark.parametrize("make", [concatenated, best_fitted])
def test_epochs_and_seeds_differ_and_repeat(make):
    lengths = np.random.default_rng(0).integers(1, 50, 200)
    rows = make(lengths, 64)
    epochs = [[rows.row(n) for n in range(rows.count(e), rows.count(e + 1) - 1)] for e in (0, 1)]
    again = make(lengths, 64)
    assert epochs[0] != epochs[1]
    # Asked for in another order, and by another object.
    assert [again.row(n) for n in range(rows.count(1), rows.count(2) - 1)] == epochs[1]
    assert [again.row(n) for n in range(rows.count(0), rows.count(1) - 1)] == epochs[0]
    assert make(lengths, 64, seed=1).row(0) != epochs[0][0]


@pytest.mark.parametrize("make", [concatenated, best_fitted])
def test_rows_survive_the_way_to_a_worker(make):
    rows = make([5, 30, 7], 8)
    expected = [rows.row(n) for n in range(20)]
    copy = pickle.loads(pickle.dumps(rows))  # as multiprocessing does
    assert [copy.row(n) for n in range(20)] == expected


def test_unshuffled_rows_keep_the_order_of_documents():
    rows = concatenated([3, 5, 4], 4, shuffle=False)
    assert [tuple(p) for n in range(3) for p in rows.row(n)] == [
        (100, 0, 3),
        (101, 0, 1),
        (101, 1, 5),
        (102, 0, 4),
    ]


def test_parts_of_a_long_document_do_not_follow_each_other():
    rows = concatenated([10_000], 10)
    starts = [rows.row(n)[0].start for n in range(rows.count(1))]
    assert sorted(starts) == list(range(0, 10_000, 10))
    assert abs(np.corrcoef(starts, np.arange(len(starts)))[0, 1]) < 0.2
