"""The loss at the head: by chunks as from whole logits."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from modbrick.next_token import head_loss, head_token_losses, token_losses

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.mark.parametrize("chunk", [1, 3, 10, 64])
def test_head_loss_equals_plain_logits(chunk: int) -> None:
    rng = np.random.default_rng(2)
    hidden = jnp.asarray(rng.standard_normal((3, 10, 8)), jnp.float32)
    weight = jnp.asarray(rng.standard_normal((8, 17)), jnp.float32)
    targets = jnp.asarray(rng.integers(0, 17, (3, 10)), jnp.int32)
    weights = jnp.asarray(rng.random((3, 10)) > 0.3, jnp.float32)

    def plain(hidden, weight):
        return 3.0 * (token_losses(1.5 * hidden @ weight, targets) * weights).sum()

    def chunked(hidden, weight):
        return 3.0 * head_loss(hidden, weight, targets, weights, 1.5, chunk)

    got, got_gradients = jax.jit(jax.value_and_grad(chunked, (0, 1)))(hidden, weight)
    want, want_gradients = jax.jit(jax.value_and_grad(plain, (0, 1)))(hidden, weight)
    np.testing.assert_allclose(got, want, rtol=1e-6)
    np.testing.assert_allclose(
        jax.jit(head_token_losses, static_argnums=(3, 4))(hidden, weight, targets, 1.5, chunk),
        token_losses(1.5 * hidden @ weight, targets),
        rtol=1e-5,
        atol=1e-6,
    )
    for got, want in zip(got_gradients, want_gradients, strict=True):
        assert np.linalg.norm(got - want) <= 1e-5 * np.linalg.norm(want)


def test_masked_targets_have_no_gradient() -> None:
    hidden = jnp.ones((1, 4, 3))
    weight = jnp.arange(15.0).reshape(3, 5)
    targets = jnp.zeros((1, 4), jnp.int32)
    weights = jnp.asarray([[1.0, 0.0, 1.0, 0.0]])
    gradient = jax.grad(lambda h: head_loss(h, weight, targets, weights, 1.0, 2))(hidden)
    assert np.all(np.asarray(gradient)[0, [1, 3]] == 0.0)
    assert np.all(np.abs(np.asarray(gradient)[0, [0, 2]]).sum(-1) > 0.0)


def test_targets_of_another_shape_are_refused_while_tracing():
    hidden = jax.ShapeDtypeStruct((2, 4, 8), jnp.float32)
    weight = jax.ShapeDtypeStruct((8, 11), jnp.float32)
    targets = jax.ShapeDtypeStruct((2, 3), jnp.int32)
    with pytest.raises(AssertionError, match="shape"):
        jax.eval_shape(
            lambda h, w, t, s: head_loss(h, w, t, s, 1.0, 2),
            *(hidden, weight, targets, jax.ShapeDtypeStruct((2, 3), jnp.float32)),
        )
