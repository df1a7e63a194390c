"""Isolation of documents: neither padding nor other documents in a row matter."""

from __future__ import annotations

import numpy as np
import pytest

from modbrick.layers.context import Bricks
from tests.modbrick.layers import oracle
from tests.modbrick.layers.tiny import (
    VOCABULARY,
    attention_model,
    model_of,
    mostly_verified,
    relative_error,
    run,
    tokens_of,
)

DOCUMENT = tokens_of(1, 6, seed=1)[0]
OTHER = tokens_of(1, 4, seed=2)[0]

# After padding, before padding, after another document, and before one with padding between.
PLACES = [4, 0, 4, 0]
SEGMENTS = np.array(
    [
        [0, 0, 0, 0, 7, 7, 7, 7, 7, 7],
        [1, 1, 1, 1, 1, 1, 0, 0, 0, 0],
        [1, 1, 1, 1, 2, 2, 2, 2, 2, 2],
        [3, 3, 3, 3, 3, 3, 0, 5, 5, 5],
    ]
)


def rows(other: np.ndarray) -> np.ndarray:
    tokens = np.stack([np.resize(other, 10)] * 4)
    for row, place in enumerate(PLACES):
        tokens[row, place : place + 6] = DOCUMENT
    return tokens


@pytest.mark.parametrize(
    "kind",
    mostly_verified(
        "stickbreaking, strict window",
        "softmax, rope",
        "softmax experts, window",
    ),
)
def test_a_document_in_any_row_is_the_document_alone(kind):
    model = attention_model(kind)
    expected = oracle.decode(model, DOCUMENT)["logits"]
    segments = SEGMENTS.astype(np.int32)
    logits = np.asarray(run(model, rows(OTHER), segment_ids=segments).logits)
    alone = [logits[row, place : place + 6] for row, place in enumerate(PLACES)]
    for actual in alone:
        assert relative_error(actual, expected) < 1e-5
    # What stands around it has no influence at all, not even by rounding.
    changed = np.asarray(run(model, rows((OTHER + 1) % VOCABULARY), segment_ids=segments).logits)
    for row, place in enumerate(PLACES):
        np.testing.assert_array_equal(changed[row, place : place + 6], alone[row])
    assert not np.array_equal(changed[2, :4], logits[2, :4])


@pytest.fixture(scope="module")
def sparse():
    return attention_model("softmax experts, window")


def test_an_attention_mask_is_padding(sparse):
    expected = oracle.decode(sparse, DOCUMENT)["logits"]
    logits = run(sparse, rows(OTHER), attention_mask=SEGMENTS != 0, bricks=Bricks()).logits
    for row, place in enumerate(PLACES[:2]):
        assert relative_error(logits[row, place : place + 6], expected) < 1e-5


def test_positions_count_real_tokens_of_a_row():
    """Given positions are used as they are; without, padding on the left takes none."""
    model = attention_model("softmax, rope")
    mask = SEGMENTS[:2] != 0
    positions = np.zeros((2, 10), np.int32)
    positions[0, 4:] = positions[1, :6] = np.arange(6)
    implicit = run(model, rows(OTHER)[:2], attention_mask=mask).logits
    explicit = run(model, rows(OTHER)[:2], attention_mask=mask, positions=positions).logits
    real = np.asarray(mask)
    assert relative_error(np.asarray(explicit)[real], np.asarray(implicit)[real]) < 1e-6
    stretched = run(model, rows(OTHER)[:2], attention_mask=mask, positions=positions * 3).logits
    assert relative_error(np.asarray(stretched)[real], np.asarray(implicit)[real]) > 1e-3


def test_statistics_count_real_tokens_or_all(sparse):
    mask = SEGMENTS != 0
    padded = sum((~mask).ravel())
    everything = model_of(sparse.config.replace(router_statistics="all"))
    for model, count in ((sparse, mask.sum()), (everything, mask.sum() + padded)):
        output = run(model, rows(OTHER), attention_mask=mask, bricks=Bricks())
        for statistics in output.router_statistics.values():
            np.testing.assert_array_equal(statistics.tokens, [count])
            np.testing.assert_allclose(statistics.choices.sum(), 2 * count)
            np.testing.assert_allclose(statistics.probability.sum(), count, rtol=1e-5)


def test_segment_padding_does_not_count(sparse):
    output = run(sparse, rows(OTHER), segment_ids=SEGMENTS.astype(np.int32))
    for statistics in output.router_statistics.values():
        np.testing.assert_array_equal(statistics.tokens, [(SEGMENTS != 0).sum()])
