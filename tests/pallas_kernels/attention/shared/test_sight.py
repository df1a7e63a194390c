from __future__ import annotations

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.attention.shared.masks import Visibility
from pallas_kernels.attention.shared.sight import keys_seen_by, queries_that_see

RANDOM = np.random.default_rng(0)
QUERIES, KEYS = 7, 9
RULES = [
    Visibility(offset=offset, nearest=nearest, window=window)
    for offset, nearest, window in itertools.product([-7, 0, 3, 12], [None, 0, 1], [None, 1, 4])
]


def _masked_rules() -> list[Visibility]:
    query_ids, key_ids = (jnp.asarray(RANDOM.integers(0, 2, (2, n))) for n in (QUERIES, KEYS))
    mask = jnp.asarray(RANDOM.random((2, KEYS)) < 0.6)
    return [
        Visibility(2, key_mask=mask, window=4),
        Visibility(2, query_ids, key_ids, nearest=1),
        Visibility(-1, query_ids, key_ids, mask, window=5),
    ]


@pytest.mark.parametrize("limited", [False, True])
def test_agree_with_looking_at_every_pair(limited: bool) -> None:
    limit = jnp.asarray(RANDOM.integers(0, KEYS, (2, QUERIES, 3)), jnp.int32) if limited else None
    marks = {n: RANDOM.random((2, n, 3)) < 0.2 for n in (QUERIES, KEYS)}
    for rules in RULES + _masked_rules():
        seen = np.asarray(rules.seen(0, QUERIES, 0, KEYS))[..., None]  # [B or 1, Sk, Sq, 1]
        if limit is not None:
            seen = seen & (np.arange(KEYS)[:, None, None] >= np.asarray(limit)[:, None])
        found = queries_that_see(jnp.asarray(marks[KEYS]), rules, QUERIES, limit)
        np.testing.assert_array_equal(found, (seen & marks[KEYS][:, :, None]).any(1), str(rules))
        found = keys_seen_by(jnp.asarray(marks[QUERIES]), rules, KEYS, limit)
        np.testing.assert_array_equal(found, (seen & marks[QUERIES][:, None]).any(2), str(rules))
