"""NaN and infinity in attention, by every implementation that runs everywhere."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.softmax_attention import softmax_attention_and_log_sum
from pallas_kernels.stickbreaking_attention import stickbreaking_attention
from tests.contracts.containment import (
    OPERATIONS,
    POISONS,
    assert_contained,
    assert_early_exit_limits_what_is_lost,
)


@pytest.mark.parametrize("rules", ["", "segments", "window"])
@pytest.mark.parametrize("implementation", ["xla", "reference"])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_what_is_not_finite_reaches_what_sees_it(
    operation: str, implementation: str, rules: str
) -> None:
    for name in POISONS:
        assert_contained(operation, implementation, name, rules=rules)


@pytest.mark.parametrize("implementation", ["xla", "reference"])
def test_early_exit_limits_what_is_lost(implementation: str) -> None:
    assert_early_exit_limits_what_is_lost(implementation, far=128)


@pytest.mark.parametrize("implementation", ["xla", "reference"])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_products_that_overflow_in_the_future_do_not_reach_the_past(
    operation: str, implementation: str
) -> None:
    random = np.random.default_rng(0)
    lengths = (16, 24, 24, 16)
    clean = [random.standard_normal((1, n, 1, 8)).astype(np.float32) for n in lengths]
    large = [x.copy() for x in clean]
    large[1][:, 16:], large[2][:, 16:] = 3e38 * np.sign(clean[1][:, 16:]), 3e38

    @jax.jit
    def run(*arrays):
        *inputs, d_output = arrays
        attend = functools.partial(OPERATIONS[operation], implementation, query_offset=0)
        output, pull = jax.vjp(lambda *x: attend(*x)[0], *inputs)
        return output, *pull(d_output)

    for found, expected in zip(run(*large), run(*clean), strict=True):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("attend", [stickbreaking_attention, softmax_attention_and_log_sum])
def test_a_decoding_step_contains_what_it_does_not_see(attend) -> None:
    random = np.random.default_rng(0)
    arrays = [random.standard_normal((2, n, h, 4)).astype(np.float32) for n, h in ((1, 4), (9, 2))]
    query, key, value = arrays[0], arrays[1], arrays[1] + 1
    mask = np.arange(9)[None] != np.array([[2], [9]])

    @jax.jit
    def step(query, key, value):
        return attend(query, key, value, key_mask=mask, query_offset=jnp.int32(5), window=5)

    def spoil(x: np.ndarray, where, number: float) -> np.ndarray:
        copy = x.copy()
        copy[where] = number
        return copy

    output, rest = (np.asarray(x) for x in step(query, key, value))
    assert np.isfinite(output).all()
    unseen = [np.s_[:, 6:], np.s_[0, 2], np.s_[:, 0]]
    for where in unseen:
        for number in (np.nan, np.inf, 3e38):
            keys, values = (spoil(x, where, number) for x in (key, value))
            for found, expected in zip(step(query, keys, values), (output, rest), strict=True):
                np.testing.assert_array_equal(found, expected)
    lost = np.zeros((2, 1, 4), bool)
    lost[1, :, 2:] = True  # The heads of the second group.
    for number in (np.nan, np.inf, -np.inf):
        for arguments, of_rest in (
            ((query, spoil(key, np.s_[1, 3, 1, 0], number), value), lost),
            ((query, key, spoil(value, np.s_[1, 2, 1, 3], number)), np.zeros_like(lost)),
        ):
            found = step(*arguments)
            np.testing.assert_array_equal(found[0], np.where(lost[..., None], np.nan, output))
            np.testing.assert_array_equal(found[1], np.where(of_rest, np.nan, rest))
        found = step(spoil(query, np.s_[0, 0, 1, 1], number), key, value)
        lost_query = np.zeros_like(lost)
        lost_query[0, 0, 1] = True
        np.testing.assert_array_equal(found[0], np.where(lost_query[..., None], np.nan, output))
        np.testing.assert_array_equal(found[1], np.where(lost_query, np.nan, rest))


def test_a_query_that_sees_nothing_has_nothing_to_lose() -> None:
    x = jnp.full((1, 1, 1, 2), jnp.nan)
    output, remainder = stickbreaking_attention(x, x, x)
    assert (output == 0).all()
    assert (remainder == 1).all()
    output, log_sum = softmax_attention_and_log_sum(x, x, x, query_offset=-1)
    assert (output == 0).all()
    assert (log_sum == -jnp.inf).all()


def test_rows_that_a_loss_leaves_out_pass_nothing_on() -> None:
    """Also the gradient of a decoding step, which looks at all keys beforehand then."""
    x = jnp.ones((1, 4, 1, 2)).at[0, 2].set(jnp.nan)

    def of_the_clean(*arrays):
        output, remainder = stickbreaking_attention(*arrays, attend_current=True)
        return jnp.where(jnp.isfinite(output), output, 0).sum() + remainder[:, :2].sum()

    for gradient in jax.grad(of_the_clean, argnums=(0, 1, 2))(x, x, x):
        assert np.isfinite(np.asarray(gradient)).all()
        assert (np.asarray(gradient)[:, 2:] == 0).all()

    def of_a_step(key, value):
        return stickbreaking_attention(x[:, :1], key, value, query_offset=2).output.sum()

    d_key, d_value = jax.grad(of_a_step, argnums=(0, 1))(x, x)
    assert np.isfinite(np.asarray(d_key)).all()
    assert (np.asarray(d_value)[:, 2:] == 0).all()
    assert (np.asarray(d_value)[:, :2] != 0).all()
