"""A decoder as pure functions: the same model, and nothing is traced twice."""

from __future__ import annotations

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from modbrick.config import (
    AttentionConfig,
    ExpertsConfig,
    FeedForwardConfig,
    LayerConfig,
    RouterConfig,
)
from modbrick.decoder.decoder import Decoder
from modbrick.decoder.functional import (
    functional_decoder,
    initial_parameters,
    parameter_table,
    parameters_of,
)
from modbrick.parameters import nest
from tests.modbrick.layers.tiny import QUICK, model_config, run, tokens_of

pytestmark = pytest.mark.usefixtures("quick_compilation")

# All widths are equal, so that few random shapes compile where values are made one by one.
EQUAL = ExpertsConfig(16, 2, RouterConfig(hidden=16))
SPARSE = LayerConfig(AttentionConfig(2, 8, experts=EQUAL), FeedForwardConfig(16, experts=EQUAL))
DENSE = LayerConfig(AttentionConfig(2, 8), FeedForwardConfig(16))
CONFIG = model_config(DENSE, DENSE, SPARSE, SPARSE).replace(vocabulary=16)


@pytest.fixture(scope="module")
def parameters():
    return initial_parameters(CONFIG, jax.random.key(3))


def test_parameters_are_those_of_the_table(parameters):
    chex.assert_trees_all_equal_shapes_and_dtypes(
        parameters, functional_decoder(CONFIG).table.abstract()
    )
    assert list(parameters) == sorted(info.path for info in parameter_table(CONFIG))


def test_initial_parameters_are_the_module_s(parameters):
    built = parameters_of(Decoder(CONFIG, key=jax.random.key(3)))
    chex.assert_trees_all_close(parameters, built, rtol=1e-6)


def test_binding_gives_the_same_model_without_tracing_again(parameters):
    decoder = functional_decoder(CONFIG)
    tokens = jnp.asarray(tokens_of(2, 4) % CONFIG.vocabulary)

    @functools.partial(jax.jit, compiler_options=QUICK)
    @chex.assert_max_traces(n=1)
    def logits(parameters):
        return decoder.bind(parameters)(tokens).logits

    bound = decoder.bind(parameters)
    assert parameters_of(bound).keys() == parameters.keys()
    first = logits(parameters)
    np.testing.assert_allclose(first, run(bound, tokens).logits, rtol=1e-5, atol=1e-6)
    other = {path: np.asarray(leaf) + np.float32(0.01) for path, leaf in parameters.items()}
    assert not np.array_equal(first, logits(other))


def test_paths_keep_their_order_when_nested(parameters):
    """So a tree of nested parameters and a flat one have their leaves in one order."""
    nested = jax.tree.leaves(nest({path: path for path in parameters}))
    assert nested == jax.tree.leaves({path: path for path in parameters})


def test_roles_are_declared(parameters):
    roles = {info.path: info.role for info in parameter_table(CONFIG)}
    assert roles["embedding"] == "embedding"
    assert roles["head.weight"] == "head"
    routers = {path for path, role in roles.items() if role == "router"}
    assert routers == {path for path in roles if "router" in path.split(".")}
    assert routers
