from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from modbrick.errors import InputError
from modbrick.inference.sampling import SamplingConfig, candidates, greedy, sample

LOGITS = jnp.array([[0.5, 2.0, -1.0, 1.0, 2.0, 0.0], [3.0, 0.0, 0.0, 0.0, 0.0, -jnp.inf]])


def softmax(x) -> np.ndarray:
    weights = np.exp(np.asarray(x, np.float64))
    return weights / weights.sum()


def keys(*seeds):
    return jax.vmap(jax.random.key)(jnp.array(seeds, jnp.uint32))


def probabilities(row: int, **options) -> np.ndarray:
    """Candidates of a row, as probabilities by token id."""
    values, ids = candidates(LOGITS, **options)
    dense = np.zeros(LOGITS.shape[1])
    dense[np.asarray(ids[row])] = softmax(np.asarray(values[row], np.float64))
    return dense


def test_greedy_takes_the_first_of_the_likeliest():
    tokens = greedy(LOGITS)
    np.testing.assert_array_equal(tokens, [1, 0])
    assert tokens.dtype == jnp.int32


def test_without_filters_the_distribution_is_the_softmax():
    for row in (0, 1):
        np.testing.assert_allclose(probabilities(row), softmax(LOGITS[row]), atol=1e-6)


def test_temperature_divides_the_logits():
    expected = softmax(np.asarray(LOGITS[0]) / 0.4)
    np.testing.assert_allclose(probabilities(0, temperature=0.4), expected, atol=1e-6)


def test_a_tiny_temperature_is_greedy_and_finite():
    values, ids = candidates(LOGITS[:, :5] * 1e4, temperature=1e-38)
    assert not np.isnan(np.asarray(values)).any()
    drawn = sample(
        keys(*range(20)), jnp.tile(jnp.array([[1.0, 9e4, 2.0]]), (20, 1)), temperature=1e-38
    )
    np.testing.assert_array_equal(drawn, 1)
    np.testing.assert_array_equal(ids[:, 0], [1, 0])


@pytest.mark.parametrize("top_k", [1, 2, 4, 6, 100])
def test_top_k_keeps_exactly_k(top_k):
    kept = np.argsort(-np.asarray(LOGITS[0]), kind="stable")[:top_k]
    expected = np.zeros(6)
    expected[kept] = softmax(np.asarray(LOGITS[0])[kept])
    np.testing.assert_allclose(probabilities(0, top_k=top_k), expected, atol=1e-6)


@pytest.mark.parametrize("top_p", [1e-6, 0.3, 0.5, 0.75, 0.95, 1.0])
@pytest.mark.parametrize("top_k", [None, 4])
def test_top_p_keeps_the_smallest_set_that_reaches_it(top_p, top_k):
    p = probabilities(0, top_k=top_k)
    order = np.argsort(-p, kind="stable")
    count = int(np.searchsorted(np.cumsum(p[order]), top_p - 1e-6)) + 1
    expected = np.zeros(6)
    expected[order[:count]] = p[order[:count]] / p[order[:count]].sum()
    actual = probabilities(0, top_k=top_k, top_p=top_p)
    np.testing.assert_allclose(actual, expected, atol=1e-6)
    assert probabilities(1, top_p=top_p)[0] > 0


@pytest.mark.parametrize("options", [{}, {"temperature": 0.7, "top_k": 4, "top_p": 0.9}])
def test_draws_follow_the_distribution(options):
    count = 4000
    tokens = np.asarray(sample(keys(*range(count)), jnp.tile(LOGITS[:1], (count, 1)), **options))
    expected = probabilities(0, **options)
    shares = np.bincount(tokens, minlength=6) / count
    assert (np.abs(shares - expected) < 4 * np.sqrt(expected / count) + 1e-9).all()
    assert set(np.flatnonzero(shares)) <= set(np.flatnonzero(expected))


@pytest.mark.parametrize("options", [{}, {"top_k": 4, "top_p": 0.9}])
def test_a_draw_depends_on_its_own_key_and_logits_only(options):
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(8, 50)), jnp.float32)
    together = np.asarray(sample(keys(*range(8)), logits, **options))
    alone = [int(sample(keys(i), logits[i : i + 1], **options)[0]) for i in range(8)]
    np.testing.assert_array_equal(together, alone)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"temperature": -0.1}, "-0.1"),
        ({"temperature": float("nan")}, "nan"),
        ({"temperature": float("inf")}, "inf"),
        ({"top_k": 0}, "top_k must be at least 1, got 0"),
        ({"top_p": 0.0}, "0.0"),
        ({"top_p": 1.01}, "1.01"),
    ],
)
def test_bad_settings_are_named(options, named):
    with pytest.raises(InputError, match=named):
        SamplingConfig(**options)
