from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.attention.stickbreaking import stickbreaking_attention
from pallas_kernels.attention.stickbreaking.accumulation import Sum, combine, products, sums

LENGTH = 65536
RANDOM = np.random.default_rng(0)
# What far keys, each of which takes a hair of the stick, can add up to.
LOGITS = np.stack(
    [
        np.full(LENGTH, -20.0),
        np.full(LENGTH, -15.0),
        np.full(LENGTH, -12.0),
        np.full(LENGTH, -11.46),
        np.full(LENGTH, -10.0),
        RANDOM.normal(-14, 2, LENGTH),
        np.where(RANDOM.random(LENGTH) < 1e-4, 1.0, -15.0),
        np.where(np.arange(LENGTH) < LENGTH - 9, -15.0, 0.25),
        np.full(LENGTH, 3.0),
    ]
)


@jax.jit
def _broken(query, key, value):
    def call(key):
        return stickbreaking_attention(
            query, key, value, scale=1.0, attend_current=True, implementation="xla"
        )

    def results(key):
        output, remainder = call(key)
        return jnp.stack([remainder.sum(), output.astype(jnp.float32).sum()]), (output, remainder)

    _, pull, (output, remainder) = jax.vjp(results, key, has_aux=True)
    return output, remainder, pull(jnp.array([1.0, 0.0]))[0], pull(jnp.array([0.0, 1.0]))[0]


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_long_rows_lose_nothing(dtype) -> None:
    rows = len(LOGITS)
    key = jnp.asarray(LOGITS, dtype)[..., None, None]
    query, value = jnp.ones((rows, 1, 1, 1), dtype), jnp.ones_like(key)
    results = (np.asarray(x, np.float64) for x in _broken(query, key, value))
    output, remainder, of_remainder, of_output = (x.reshape(rows, -1) for x in results)
    logits = np.asarray(key, np.float64)[..., 0, 0]
    exact = np.exp(-np.logaddexp(0, logits).sum(1, keepdims=True))
    np.testing.assert_allclose(remainder, exact, rtol=0, atol=2e-7)
    # A key takes its share of what is left, and the output is all that was taken.
    gradient = -exact / (1 + np.exp(-logits))
    rounding = 2e-7 if dtype == jnp.float32 else 2.0**-8
    np.testing.assert_allclose(output + remainder, 1, rtol=0, atol=rounding)
    for found, expected in ((of_remainder, gradient), (of_output, -gradient)):
        error = np.linalg.norm(found - expected, axis=1)
        assert (error <= 1e-6 + rounding * np.linalg.norm(expected, axis=1)).all()


@pytest.mark.parametrize("size", [5, 13, 16, 64])
def test_products_are_of_each_key_and_all_nearer_ones(size: int) -> None:
    odds = np.exp(np.random.default_rng(1).normal(-6, 5, (1, 1, size, 3)))
    odds[..., 0] *= 1e-9
    logs = np.log1p(odds[:, :, ::-1]).cumsum(2)[:, :, ::-1]
    within, spans = (np.asarray(x, np.float64) for x in products(jnp.asarray(odds, np.float32)))
    # Together they are the product over all nearer keys.
    together = within * (1 + spans[:, :, 1:, None])
    np.testing.assert_allclose(together.reshape(odds.shape), np.exp(logs), rtol=1e-6)
    np.testing.assert_allclose(spans[:, :, 0], np.expm1(logs[:, :, 0]), rtol=1e-6)
    assert (spans[:, :, -1] == 0).all()
    within, spans = (np.asarray(x, np.float64) for x in sums(jnp.asarray(odds, np.float32)))
    together = within + spans[:, :, 1:, None]
    expected = odds[:, :, ::-1].cumsum(2)[:, :, ::-1]
    np.testing.assert_allclose(together.reshape(odds.shape), expected, rtol=1e-6)


@pytest.mark.parametrize("size", [13, 32])
def test_a_product_that_overflows_stays_a_number(size: int) -> None:
    odds = np.zeros((1, 1, size, 2), np.float32)
    odds[:, :, 1:9, 0] = np.exp(44.0)
    odds[:, :, ::3, 1] = np.exp(44.0)
    within, spans = products(jnp.asarray(odds))
    assert not np.isnan(within).any()
    assert np.isfinite(spans).all()
    assert (np.asarray(spans[:, :, 0]) > 1e37).all()
    full = combine(jnp.float32(2.0**126), jnp.float32(2.0**126))
    assert np.isfinite(combine(full, jnp.float32(0)))
    total = Sum.of(jnp.zeros(2))
    for factor in (2.0**126, 2.0**126, 0.0, 1.0):
        total = total.combined(jnp.full(2, factor, jnp.float32))
    np.testing.assert_array_equal(total.total, 2.0**126)


def test_sums_of_many_terms_keep_what_rounding_lost() -> None:
    term = jnp.float32(0.1)
    many, few = Sum.of(jnp.float32(0)), Sum.of(jnp.float32(0), terms=9)
    for _ in range(1000):
        many, few = many.plus(term), few.plus(term)
    exact = 1000 * float(term)
    assert abs(float(many.total) - exact) <= 4e-6 < abs(float(few.total) - exact)
