"""Mentions of entities, and rows with places for them."""

from __future__ import annotations

import numpy as np
import pytest

from modbrick.data import ByteTokenizer
from modbrick.data.entities import Entities
from modbrick.errors import InputError

NAMES = ("York", "New York", "new york city", "Ærø", "O'Neill")
KNOWN = Entities(NAMES, np.arange(15.0, dtype=np.float32).reshape(5, 3))


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("New York City, not York.", ["New York City", "York"]),
        ("new york", ["new york"]),
        ("New Yorkers yorked", []),
        ("ÆRØ and o'neill", ["ÆRØ", "o'neill"]),
        ("New\nYork", ["New\nYork"]),
        ("New", []),
        ("", []),
    ],
)
def test_mentions_are_the_longest_names_of_whole_words(text, found):
    mentions = KNOWN.mentions(text)
    assert [text[m.start : m.stop] for m in mentions] == found
    for mention in mentions:
        assert (
            NAMES[mention.entity].casefold()
            == " ".join(text[mention.start : mention.stop].split()).casefold()
        )


def test_a_row_without_its_placeholders_is_the_text():
    text, tokenizer = "York, New York and O'Neill's.", ByteTokenizer()
    tokens, entities = KNOWN.encode(text, tokenizer, placeholder=256)
    assert entities == [0, 1, 4]
    assert tokens.count(256) == 3
    assert tokenizer.decode([t for t in tokens if t != 256]) == text
    assert tokens[len("York")] == 256


def test_features_are_padded_to_the_longest_row():
    features = KNOWN.features([[0, 4], [], [2]])
    assert features.shape == (3, 2, 3)
    assert np.array_equal(features[0], KNOWN.vectors[[0, 4]])
    assert np.array_equal(features[2, 0], KNOWN.vectors[2])
    assert not features[1].any()
    assert not features[2, 1].any()
    assert KNOWN.features([[], []]).shape == (2, 1, 3)


def test_vectors_that_do_not_fit_and_names_without_words_are_refused():
    with pytest.raises(InputError, match=r"2 entities do not fit vectors of shape \[3, 4\]"):
        Entities(("a", "b"), np.zeros((3, 4), np.float32))
    with pytest.raises(InputError, match="'--' is no name"):
        Entities(("a", "--"), np.zeros((2, 4), np.float32))
