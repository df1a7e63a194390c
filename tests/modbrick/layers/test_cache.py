from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from modbrick.layers.cache import Cache, SegmentCache
from tests.modbrick.layers import oracle
from tests.modbrick.layers.tiny import (
    SPARSE,
    attention_model,
    model_config,
    mostly_verified,
    relative_error,
    run,
    tokens_of,
)

LENGTH, CAPACITY = 10, 12
TOKENS = tokens_of(2, LENGTH)
MASK = np.arange(LENGTH) >= np.array([[3], [0]])  # row 0 is padded on the left


@pytest.mark.parametrize(
    "kind",
    mostly_verified("stickbreaking, strict window", "softmax experts, window"),
)
def test_logits_equal_those_without_a_cache(kind):
    """Prefilled in two chunks, then token by token; without: each document alone, by definition."""
    model = attention_model(kind)
    cache = Cache.empty(model.config, 2, CAPACITY)
    parts, start = [], 0
    for size in (4, 4, 1, 1):
        chunk = slice(start, start + size)
        output = run(model, TOKENS[:, chunk], attention_mask=MASK[:, chunk], cache=cache)
        assert output.cache is not None
        cache = output.cache
        parts.append(output.logits)
        start += size
        assert int(cache.length) == start
    actual = np.concatenate(parts, axis=1)
    for row, real in enumerate(MASK):
        expected = oracle.decode(model, TOKENS[row][real])["logits"]
        assert relative_error(actual[row][real], expected) < 1e-5
    np.testing.assert_array_equal(cache.mask[:, :LENGTH], MASK)
    assert not np.asarray(cache.mask[:, LENGTH:]).any()


def test_what_stands_in_unwritten_slots_does_not_matter():
    model = attention_model("stickbreaking")
    clean = Cache.empty(model.config, 2, CAPACITY)
    dirty = jax.tree.map(
        lambda x: np.full(x.shape, 3.0, x.dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x,
        clean,
    )
    one, other = (
        run(model, TOKENS[:, :4], attention_mask=MASK[:, :4], cache=c).logits
        for c in (clean, dirty)
    )
    np.testing.assert_array_equal(one, other)


def test_documents_in_a_cache_do_not_see_each_other():
    model = attention_model("softmax, rope")
    ids = np.array([[1] * 4 + [2] * 4] * 2, np.int32)
    cache = Cache.empty(model.config, 2, CAPACITY)
    first = run(model, TOKENS[:, :4], segment_ids=ids[:, :4], cache=cache)
    second = run(model, TOKENS[:, 4:8], segment_ids=ids[:, 4:], cache=first.cache)
    alone = run(model, TOKENS[:, 4:8], segment_ids=ids[:, 4:], cache=cache)
    assert relative_error(second.logits, alone.logits) < 1e-5
    joined = run(model, TOKENS[:, 4:8], segment_ids=ids[:, :4], cache=first.cache)
    assert relative_error(joined.logits, alone.logits) > 1e-3


def test_an_empty_cache():
    cache = Cache.empty(model_config(SPARSE, SPARSE, dtype="bfloat16"), 3, 7)
    assert cache.capacity == 7
    assert int(cache.length) == 0
    assert not np.asarray(cache.mask).any()
    keys = cache.segments["0"].keys  # two equal layers are one segment
    assert keys.shape == cache.segments["0"].values.shape == (2, 3, 7, 2, 8)
    assert keys.dtype == jnp.bfloat16


def test_a_write_touches_its_own_slots_only():
    random = np.random.default_rng(0)
    shape = (3, 2, 6, 1, 4)
    before = SegmentCache(*(jnp.asarray(random.normal(size=shape), jnp.float32) for _ in range(2)))
    keys, values = (jnp.asarray(random.normal(size=(2, 2, 1, 4)), jnp.float32) for _ in range(2))
    after, layer_keys, layer_values = before.write(jnp.int32(1), jnp.int32(3), keys, values)
    for old, new, written, seen in (
        (before.keys, after.keys, keys, layer_keys),
        (before.values, after.values, values, layer_values),
    ):
        expected = np.array(old)
        expected[1, :, 3:5] = written
        np.testing.assert_array_equal(new, expected)
        np.testing.assert_array_equal(seen, expected[1])
