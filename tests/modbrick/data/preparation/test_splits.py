import itertools
import math
import unicodedata

import pytest

from modbrick.data.preparation.splits import fraction_of, text_digest, threshold


def test_copies_share_a_digest_and_others_do_not():
    text = "Größe\nzweite Zeile\n"
    copies = (
        text.replace("\n", "\r\n"),
        text.replace("\n", "\r"),
        f"\n  {text}\t\n",
        unicodedata.normalize("NFD", text),
    )
    assert {text_digest(copy) for copy in copies} == {text_digest(text)}
    others = ("Größe zweite Zeile", "größe\nzweite Zeile", "Größe\n\nzweite Zeile", "Größe")
    assert len({text_digest(other) for other in (text, *others)}) == 5


def test_fractions_are_spread_evenly():
    fractions = [fraction_of(text_digest(str(number))) for number in range(4000)]
    assert all(0 <= fraction < 1 for fraction in fractions)
    assert abs(sum(fraction < 0.25 for fraction in fractions) - 1000) < 100


@pytest.mark.parametrize(
    ("fractions", "share", "others", "held_out"),
    [
        ([0.1, 0.5, 0.9], 0.2, False, 1),
        ([0.5, 0.9, 0.7], 0.2, False, 1),  # the lowest one, since none is by chance
        ([0.5, 0.9, 0.7], 0.2, True, 0),
        ([0.1, 0.15, 0.05], 0.2, False, 2),  # the highest one is trained on
        ([0.1, 0.15, 0.05], 0.2, True, 2),
        ([0.1], 0.2, False, 0),
        ([0.1, 0.1], 0.9, False, 0),  # copies
        ([0.1], 0.2, True, 0),
        ([0.5], 0.2, False, 0),
        ([0.1, 0.9], 0.0, False, 0),
    ],
)
def test_chance_leaves_no_split_empty(fractions, share, others, held_out):
    for order in itertools.permutations(fractions):
        found = threshold(order, share, others_held_out=others)
        assert sum(fraction < found for fraction in fractions) == held_out


def test_no_more_documents_are_asked_for_than_it_takes():
    fractions = iter([0.9, 0.1, math.nan])
    assert threshold(fractions, 0.2, others_held_out=False) == 0.2
    assert math.isnan(next(fractions))
