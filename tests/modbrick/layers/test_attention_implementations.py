"""A choice that an attention layer cannot run is an error of the user's, with the remedy."""

from __future__ import annotations

import jax.numpy as jnp
import pytest

from modbrick.config import LayerConfig
from modbrick.errors import InputError
from modbrick.execution import ExecutionConfig
from tests.modbrick.layers.tiny import (
    ATTENTIONS,
    DENSE_FEED_FORWARD,
    model_config,
    model_of,
    run,
    tokens_of,
)


@pytest.mark.parametrize(
    ("name", "message"),
    [("tpu", "'tpu' is unknown; known are .*'xla'"), ("splash", "inputs are float32; use 'xla'")],
)
def test_softmax_attention_says_why_not(name: str, message: str) -> None:
    config = model_config(LayerConfig(ATTENTIONS["softmax, rope"], DENSE_FEED_FORWARD))
    model = model_of(config, ExecutionConfig(attention=name))
    with pytest.raises(InputError, match=rf"^execution\.attention: .*{message}"):
        run(model, jnp.asarray(tokens_of(1, 20)))
