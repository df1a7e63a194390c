"""Transforms: what each says of the other format, and that it loses nothing."""

from __future__ import annotations

import numpy as np
import pytest

from modbrick.config import AttentionConfig, FeedForwardConfig, LayerConfig
from modbrick.convert.transforms import SAME, TRANSPOSED, InterleavedRotary, Reshaped, Transform

LAYER = LayerConfig(AttentionConfig(heads=2, head_width=4), FeedForwardConfig(6))
ROTARY = InterleavedRotary(lambda layer: layer.attention.heads)
COLUMN = Reshaped(lambda shape: (*shape, 1), lambda shape: shape[:-1])


@pytest.mark.parametrize(
    ("transform", "ours", "theirs"),
    [
        (SAME, (3, 5), (3, 5)),
        (SAME, (), ()),
        (TRANSPOSED, (3, 5), (5, 3)),
        (TRANSPOSED, (7, 3, 5), (7, 5, 3)),
        (ROTARY, (5, 8), (8, 5)),
        (ROTARY, (8,), (8,)),
        (COLUMN, (4,), (4, 1)),
        (COLUMN, (), (1,)),
    ],
)
def test_transforms_are_invertible(transform: Transform, ours: tuple, theirs: tuple) -> None:
    values = np.arange(np.prod(ours, dtype=int)).reshape(ours)
    stored = transform.theirs(values, LAYER)
    assert transform.shape(ours) == stored.shape == theirs
    assert np.array_equal(transform.ours(stored, LAYER), values)
    if (axis := transform.leading_axis(len(ours))) is not None:  # rows there are slices here
        for row in range(theirs[0]):
            assert np.array_equal(
                transform.theirs(values, LAYER)[row].reshape(-1),
                transform.theirs(np.take(values, [row], axis), LAYER).reshape(-1),
            )


def test_plain_transforms_copy_nothing() -> None:
    values = np.arange(30).reshape(2, 3, 5)
    for transform in (SAME, TRANSPOSED):
        assert np.shares_memory(transform.ours(values, None), values)
        assert np.shares_memory(transform.theirs(values, None), values)


def test_interleaved_pairs_are_neighbours() -> None:
    # Output i of a head is rotated with output i + 2 here, with the one beside it there.
    outputs = np.array([0, 1, 2, 3, 10, 11, 12, 13])
    assert ROTARY.theirs(outputs, LAYER).tolist() == [0, 2, 1, 3, 10, 12, 11, 13]
