"""Steering moves hidden states by what was measured."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from flax import nnx

from modbrick.bricks import Bias, plugged
from modbrick.bricks.steering import steering_brick
from modbrick.decoder.functional import functional_decoder, initial_parameters
from modbrick.errors import InputError
from tests.modbrick.bricks.tiny import MODEL

TOWARDS, AWAY = [[3, 1, 4], [1, 5, 9, 2, 6]], [[5, 3], [5, 8, 9, 7]]


@pytest.fixture(scope="module")
def model():
    return functional_decoder(MODEL).bind(initial_parameters(MODEL, jax.random.key(0)))


@nnx.jit
def stream(model, row):
    """The stream behind layer 1; what stands behind a prompt makes no difference to it."""
    return model(row, capture=["residual"]).captured["residual"]["0"][1, 0]


def hidden(model, prompts, tokens="last"):
    """Mean of the stream behind layer 1, each prompt run alone."""
    rows = [
        np.asarray(stream(model, np.array([[*p, *[0] * (8 - len(p))]])))[: len(p)] for p in prompts
    ]
    return np.mean([row[-1] if tokens == "last" else row.mean(0) for row in rows], axis=0)


@pytest.mark.parametrize("tokens", ["last", "all"])
def test_a_brick_is_the_difference_of_means(model, tokens):
    brick = steering_brick(model, TOWARDS, AWAY, at=["layer.1.residual"], tokens=tokens)
    expected = hidden(model, TOWARDS, tokens) - hidden(model, AWAY, tokens)
    np.testing.assert_allclose(brick.values["layer.1.residual.bias"], expected, atol=1e-6)
    assert np.abs(expected).max() > 1e-3


def test_it_brings_the_mean_of_one_kind_to_that_of_the_other(model):
    brick = steering_brick(model, TOWARDS, AWAY, at=["layer.1.residual"])
    plug = plugged(MODEL, {"new": brick.config}, brick.parameters("new", MODEL))
    steered = model.plug(plug)
    np.testing.assert_allclose(hidden(steered, AWAY), hidden(model, TOWARDS), atol=1e-5)


def test_without_a_second_kind_it_is_a_task_vector(model):
    brick = steering_brick(model, TOWARDS, at=["layer.*.residual", "embedding"], strength=-2.0)
    assert brick.config.settings == Bias(-2.0)
    assert len(brick.values) == 4
    np.testing.assert_allclose(
        brick.values["layer.1.residual.bias"], hidden(model, TOWARDS), atol=1e-6
    )
    last = np.mean([np.asarray(model.embedding[...])[p[-1]] for p in TOWARDS], axis=0)
    np.testing.assert_allclose(brick.values["embedding.bias"], last, atol=1e-6)


@pytest.mark.parametrize(
    ("towards", "at", "complaint"),
    [
        ([], "layer.0.residual", "prompts that have what is wanted"),
        ([[1], []], "layer.0.residual", "prompt 1 is empty"),
        ([[1, 31]], "layer.0.residual", "do not fit a vocabulary of 31"),
        ([[1]], "layer.9.residual", "no site 'layer.9.residual'"),
        ([[1]], "layer.0.attention.query", "has 2 outputs a token"),
    ],
)
def test_what_cannot_be_measured_is_refused(model, towards, at, complaint):
    with pytest.raises(InputError, match=complaint):
        steering_brick(model, towards, at=[at])
