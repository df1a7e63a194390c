from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.attention.shared.masks import Visibility


@pytest.mark.parametrize("nearest", [None, 0, 1])
@pytest.mark.parametrize("window", [None, 1, 5])
@pytest.mark.parametrize("offset", [-9, 0, 4, 30])
def test_key_range_holds_exactly_what_is_seen(nearest, window, offset) -> None:
    rules = Visibility(offset=offset, nearest=nearest, window=window)
    start, stop = (int(x) for x in rules.key_range(8, 4, 20))
    seen = np.asarray(rules.seen(8, 4, 0, 20)).any(axis=(0, 2))
    assert not seen[:start].any()
    assert not seen[stop:].any()
    if seen.any():
        assert seen[start]
        assert seen[stop - 1]


def test_seen_is_a_block_of_the_whole() -> None:
    random = np.random.default_rng(0)
    query_ids, key_ids = (jnp.asarray(random.integers(0, 2, (2, n))) for n in (12, 15))
    mask = jnp.asarray(random.random((2, 15)) < 0.5)
    rules = Visibility(
        offset=3, query_segment_ids=query_ids, key_segment_ids=key_ids, key_mask=mask, window=6
    )
    whole = np.asarray(rules.seen(0, 12, 0, 15))
    np.testing.assert_array_equal(rules.seen(4, 5, 7, 3), whole[:, 7:10, 4:9])
    for query, key in ((0, 0), (5, 8), (5, 9), (11, 2)):
        expected = (
            0 <= query + 3 - key < 6 and query_ids[1, query] == key_ids[1, key] and mask[1, key]
        )
        assert whole[1, key, query] == expected
