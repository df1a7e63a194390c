"""What attention shares out to keys in front, at its ends."""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from modbrick.layers.memory import Attended
from pallas_kernels.stickbreaking_attention import stickbreaking_attention

NOTHING = Attended(
    jnp.ones((1, 2, 1, 2)),
    jnp.array([[0, 5]]),
    jnp.zeros((1, 2, 1, 2)),
    jnp.full((1, 2, 1), -jnp.inf),
    groups=1,
    scale=1.0,
    window=4,
    kind="softmax",
)


def test_places_behind_the_window_and_padding_are_not_seen() -> None:
    place = jnp.arange(5)
    # Places -3, -2, -1 seen from 0 in a window of 4, and from 5.
    seen = NOTHING.sees(jnp.array([[[3]]]), place)
    assert seen.tolist() == [[[True, True, True, False, False], [False] * 5]]
    whole = dataclasses.replace(NOTHING, window=None).sees(jnp.array([[[3]]]), place)
    assert np.broadcast_to(whole, (1, 2, 5)).tolist() == [[[True] * 3 + [False] * 2] * 2]


@pytest.mark.parametrize("kind", ["softmax", "stickbreaking"])
def test_a_token_that_sees_nothing_at_all_has_no_weights_and_no_gradient(
    kind: Literal["softmax", "stickbreaking"],
) -> None:
    left = jnp.full((1, 2, 1), -jnp.inf if kind == "softmax" else 1.0)
    seen = jnp.array([[[[True, False]], [[False, False]]]])

    def shared(logits: jax.Array) -> tuple[jax.Array, ...]:
        attended = dataclasses.replace(NOTHING, kind=kind, left=left)
        return attended.shared(logits, seen, None)

    logits = jnp.full((1, 2, 1, 2), 1e4)
    weights, _, after = shared(logits)
    assert weights[0, 0, 0].tolist() == [1.0, 0.0]
    assert weights[0, 1, 0].tolist() == [0.0, 0.0]
    assert after[0, 1, 0] == left[0, 1, 0]
    gradient = jax.grad(lambda x: (shared(x)[0] * jnp.array([1.0, 2.0])).sum())(logits)
    assert not gradient.any()


@pytest.mark.parametrize("size", [1e4, -1e4])
def test_large_logits_are_shared_exactly(size: float) -> None:
    kinds: dict[Literal["softmax", "stickbreaking"], float] = {
        "softmax": size,
        "stickbreaking": 0.5,
    }
    for kind, left in kinds.items():
        attended = dataclasses.replace(
            NOTHING, kind=kind, left=jnp.full((1, 2, 1), left, jnp.float32), window=None
        )
        weights, done, after = attended.shared(
            jnp.full((1, 2, 1, 1), size), jnp.ones((1, 2, 1, 1), bool), None
        )
        total = done + weights.sum(-1) if kind == "softmax" else weights.sum(-1) + after
        np.testing.assert_allclose(total, 1.0 if kind == "softmax" else 0.5, rtol=1e-6)


def test_an_early_exit_leaves_the_rest_within_its_tolerance() -> None:
    """Of keys that it passes over the stick goes to those in front."""
    random, tolerance = np.random.default_rng(0), 0.02
    query, key, value = (
        jnp.asarray(random.normal(size=(1, 200, 1, 4)), jnp.float32) for _ in "123"
    )
    exact, early = (
        stickbreaking_attention(query, key, value, tolerance=t, implementation="xla")
        for t in (0.0, tolerance)
    )
    assert not np.array_equal(exact.remainder, early.remainder)
    in_front = jnp.asarray(random.normal(size=4), jnp.float32)
    results = []
    for output, left in (exact, early):
        attended = dataclasses.replace(
            NOTHING, queries=query, output=output, left=left, window=None, kind="stickbreaking"
        )
        logits = (query @ in_front)[..., None]
        weights, _, after = attended.shared(logits, jnp.ones((1, 1, 1, 1), bool), None)
        results.append((weights, after))
    for mine, wanted in zip(*results, strict=True):
        assert np.abs(mine - wanted).max() <= tolerance
