from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from modbrick.config import AttentionConfig
from modbrick.layers.attention_weights import attention_weights
from modbrick.layers.context import Visibility
from pallas_kernels.softmax_attention import softmax_attention
from pallas_kernels.stickbreaking_attention import stickbreaking_attention
from tests.compilation import QUICK

RANDOM = np.random.default_rng(0)
QUERY, KEY, VALUE = (
    jnp.asarray(RANDOM.normal(size=shape), jnp.float32)
    for shape in ((2, 4, 4, 8), (2, 9, 2, 8), (2, 9, 2, 8))
)
VISIBLE: dict[str, Any] = {
    "query_segment_ids": jnp.array([[1, 1, 2, 2], [1, 1, 1, 1]]),
    "key_segment_ids": jnp.array([[1] * 7 + [2] * 2, [1] * 9]),
    "key_mask": jnp.array([[True] * 9, [False] * 3 + [True] * 6]),
    "query_offset": 5,
    "window": 4,
}


def seen(visible: dict[str, Any]) -> Visibility:
    names = ("key_mask", "query_segment_ids", "key_segment_ids")
    return Visibility(visible["query_offset"], **{name: visible[name] for name in names})


def weights_of(config, visible=VISIBLE):
    def compute(query, key):
        return attention_weights(config, query, key, seen(visible))

    return jax.jit(compute, compiler_options=QUICK)(QUERY, KEY)


def output_of(attention, **options):
    compute = functools.partial(attention, **options, **VISIBLE)
    return jax.jit(compute, compiler_options=QUICK)(QUERY, KEY, VALUE)


def mixed(weights):
    """Values by these weights, `[B, S, N, W]`; two query heads read one value head."""
    grouped = np.asarray(weights).reshape(2, 2, 2, 4, 9)
    return np.einsum("bghsc,bcgw->bsghw", grouped, np.asarray(VALUE)).reshape(2, 4, 4, 8)


@pytest.mark.parametrize("attend_current", [True, False])
def test_stickbreaking_weights_are_those_attention_uses(attend_current):
    config = AttentionConfig(4, 8, key_value_heads=2, window=4, attend_current=attend_current)
    weights = weights_of(config)
    output = output_of(stickbreaking_attention, attend_current=attend_current)
    np.testing.assert_allclose(mixed(weights), output.output, atol=1e-5)
    total = np.asarray(weights).sum(-1) + np.asarray(output.remainder).swapaxes(1, 2)
    np.testing.assert_allclose(total, np.ones((2, 4, 4)), atol=1e-5)


def test_softmax_weights_are_those_attention_uses():
    config = AttentionConfig(4, 8, kind="softmax", key_value_heads=2, window=4)
    weights = weights_of(config)
    output = output_of(softmax_attention)
    np.testing.assert_allclose(mixed(weights), output, atol=1e-5)
    np.testing.assert_allclose(np.asarray(weights).sum(-1), np.ones((2, 4, 4)), atol=1e-5)


@pytest.mark.parametrize("kind", ["softmax", "stickbreaking"])
def test_a_query_that_sees_nothing_has_no_weights(kind):
    config = AttentionConfig(4, 8, kind=kind, key_value_heads=2)
    blind = VISIBLE | {"key_mask": jnp.zeros((2, 9), bool), "window": None}
    np.testing.assert_array_equal(weights_of(config, blind), 0.0)
