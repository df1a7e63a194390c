"""The tolerance of `ExecutionConfig` reaches stick-breaking attention, and only that."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from modbrick.config import LayerConfig
from modbrick.execution import ExecutionConfig
from tests.modbrick.layers.tiny import (
    ATTENTIONS,
    DENSE_FEED_FORWARD,
    model_config,
    model_of,
    relative_error,
    run,
    tokens_of,
)

LAYER = LayerConfig(ATTENTIONS["stickbreaking"], DENSE_FEED_FORWARD)


def test_output_changes_within_the_tolerance() -> None:
    tokens = tokens_of(1, 300)
    exact, fine, coarse = (
        run(model_of(model_config(LAYER), ExecutionConfig(attention_tolerance=t)), tokens).logits
        for t in (0.0, 2**-12, 0.9)
    )
    assert relative_error(fine, exact) < 2**-12
    assert relative_error(coarse, exact) > 0
    # The first queries see keys of one block only, and that is always visited.
    np.testing.assert_allclose(coarse[:, :32], exact[:, :32], atol=1e-5)


def test_softmax_attention_has_no_tolerance() -> None:
    config = model_config(LayerConfig(ATTENTIONS["softmax, rope"], DENSE_FEED_FORWARD))
    tokens = jnp.asarray(tokens_of(1, 20))
    one, other = (
        run(model_of(config, ExecutionConfig(attention_tolerance=t)), tokens).logits
        for t in (0.0, 0.9)
    )
    np.testing.assert_array_equal(one, other)
