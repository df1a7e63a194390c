from __future__ import annotations

import dataclasses

import numpy as np

from tests.modbrick.layers import oracle
from tests.modbrick.layers.tiny import (
    DENSE,
    RMS,
    model_config,
    model_of,
    relative_error,
    run,
    tokens_of,
)

TOKENS = tokens_of(1, 6)


def test_sublayers_are_normalised_scaled_and_added():
    layer = dataclasses.replace(DENSE, norm=RMS, residual_multiplier=0.4)
    model = model_of(model_config(layer, norm=RMS))
    hidden = run(model, TOKENS, capture=("hidden_states",)).captured["hidden_states"][:, 0]
    assert relative_error(hidden, oracle.decode(model, TOKENS[0])["hidden_states"]) < 1e-5


def test_a_multiplier_of_zero_leaves_the_stream_alone():
    model = model_of(model_config(dataclasses.replace(DENSE, residual_multiplier=0.0)))
    before, after = run(model, TOKENS, capture=("hidden_states",)).captured["hidden_states"]
    np.testing.assert_array_equal(before, after)
