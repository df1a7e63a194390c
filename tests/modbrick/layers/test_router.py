from __future__ import annotations

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from modbrick.config import ExpertsConfig, RouterConfig
from modbrick.layers.context import Context
from modbrick.layers.router import Router, RouterStatistics
from tests.modbrick.layers.oracle import softmax
from tests.modbrick.layers.test_activations import erf

pytestmark = pytest.mark.usefixtures("quick_compilation")

WIDTH, EXPERTS = 6, 5


# All that routes by given logits: few shapes of them are compiled.
ROWS = 10


def router_of(experts: ExpertsConfig, width: int = WIDTH) -> Router:
    return Router(experts, width, 1.0, rngs=nnx.Rngs(params=1))


def linear_router(experts: ExpertsConfig) -> Router:
    """Its logits are its inputs."""
    graph, state = nnx.split(nnx.eval_shape(lambda: router_of(experts, experts.count)))
    return nnx.merge(graph, jax.tree.map(lambda _: jnp.eye(experts.count), nnx.as_pure(state)))


def apply(graph, parameters, x, counted=None, random_keys=None):
    context = Context(counted=counted, random_keys=random_keys)
    return nnx.merge(graph, parameters)(x, "attention", context)


apply_compiled = jax.jit(apply, static_argnums=0)


@functools.partial(jax.jit, static_argnums=0)
def logits_of(graph, parameters, x):
    return nnx.merge(graph, parameters).logits(x)


def route(router: Router, x, counted=None, random_keys=None):
    return apply_compiled(*nnx.split(router), jnp.asarray(x, jnp.float32), counted, random_keys)


def routed_by(logits, *, key=None, counted=None, **config):
    """Routes one row of tokens by the logits given: a linear router whose weight is the identity.

    Returns the routing of that row, [S, K], and the statistics.
    """
    logits = np.atleast_2d(np.asarray(logits, np.float32))
    top_k = config.pop("top_k", 2)
    router = linear_router(ExpertsConfig(logits.shape[-1], top_k, RouterConfig("linear", **config)))
    random_keys = None if key is None else jax.random.split(key, 1)
    routing, statistics = route(router, logits[None], counted, random_keys)
    return jax.tree.map(lambda x: x[0], routing), statistics


def formula(router: Router, x: np.ndarray) -> np.ndarray:
    values = {
        ".".join(map(str, path)): np.asarray(value, np.float64)
        for path, value in nnx.to_flat_state(nnx.state(router))
    }
    match router.config.router.kind:
        case "linear":
            return x @ values["output.weight"]
        case "mlp":
            hidden = x @ values["hidden.weight"] + values["hidden.bias"]
            return (hidden * (1 + erf(hidden / np.sqrt(2))) / 2) @ values["output.weight"]
        case "gmm":
            hidden = x @ values["hidden.weight"]
            norms = np.linalg.norm(hidden, axis=-1)[..., None] * np.linalg.norm(
                values["centroids"], axis=-1
            )
            return hidden @ values["centroids"].T / norms * np.exp(values["temperature"])
    raise AssertionError


@pytest.mark.parametrize("kind", ["linear", "mlp", "gmm"])
def test_logits_match_formula(kind):
    router = router_of(ExpertsConfig(EXPERTS, 2, RouterConfig(kind, hidden=7)))
    if kind == "mlp":
        router.hidden.bias[...] = jnp.linspace(-1, 1, 7)
    if kind == "gmm":
        assert float(router.temperature[0]) == 0.0
        router.temperature[...] = jnp.array([0.7])
    x = np.random.default_rng(0).normal(size=(2, 3, WIDTH))
    actual = logits_of(*nnx.split(router), jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(actual, formula(router, x), rtol=1e-5, atol=1e-6)
    narrow = jax.eval_shape(router.logits, jax.ShapeDtypeStruct(x.shape, jnp.bfloat16))
    assert narrow.dtype == jnp.float32


def test_cosine_of_zero_is_zero_and_has_a_finite_gradient():
    router = router_of(ExpertsConfig(EXPERTS, 2, RouterConfig("gmm", hidden=7)))
    zero = jnp.zeros((1, 1, WIDTH))

    @jax.jit
    def gradient_and_logits(x):
        def loss(x):
            logits = router.logits(x)
            return (logits**2).sum(), logits

        return jax.grad(loss, has_aux=True)(x)

    gradient, logits = gradient_and_logits(zero)
    np.testing.assert_array_equal(logits, np.zeros((1, 1, EXPERTS)))
    assert np.isfinite(np.asarray(gradient)).all()


@pytest.mark.parametrize("gates", ["probability", "renormalised"])
@pytest.mark.parametrize("top_k", [1, 2, EXPERTS])
def test_top_k_and_gates(gates, top_k):
    logits = np.random.default_rng(1).normal(size=(ROWS, EXPERTS)) * 2
    routing, _ = routed_by(logits, top_k=top_k, gates=gates)
    order = np.argsort(-logits, axis=-1)[:, :top_k]
    np.testing.assert_array_equal(routing.indices, order)
    expected = np.take_along_axis(softmax(logits), order, axis=-1)
    if gates == "renormalised":
        expected = expected / expected.sum(-1, keepdims=True)
        # The same as a softmax over the chosen logits (JetMoE, Mixtral).
        chosen = softmax(np.take_along_axis(logits, order, axis=-1))
        np.testing.assert_allclose(expected, chosen, rtol=1e-6)
    np.testing.assert_allclose(routing.gates, expected, rtol=1e-5)


def test_ties_go_to_the_first_experts_and_never_twice_to_one():
    for top_k in (2, EXPERTS):
        routing, _ = routed_by(np.zeros((ROWS, EXPERTS)), top_k=top_k)
        np.testing.assert_array_equal(routing.indices, np.tile(np.arange(top_k), (ROWS, 1)))
    routing, _ = routed_by([[0.0, 5.0, 1.0, 5.0, 5.0]] * ROWS, top_k=2)
    np.testing.assert_array_equal(routing.indices, [[1, 3]] * ROWS)


def test_sampling_draws_without_replacement_in_proportion():
    """One from the top, two drawn one after the other in proportion to what is left."""
    logits = np.array([3.0, 0.0, 1.0, -1.0, 2.0])
    probabilities = softmax(logits)
    tokens = 20_000
    many = np.tile(logits, (tokens, 1))
    options = {"top_k": 3, "sample_top_k": 2}
    routing, _ = routed_by(many, key=jax.random.key(0), **options)
    indices, gates = np.asarray(routing.indices), np.asarray(routing.gates)
    assert (indices[:, 0] == 0).all()
    assert (np.sort(indices, axis=-1)[:, 1:] != np.sort(indices, axis=-1)[:, :-1]).all()
    np.testing.assert_allclose(gates, probabilities[indices], rtol=1e-5)
    rest = 1 - probabilities[0]
    for first, second in itertools.permutations([1, 2, 3, 4], 2):
        expected = (
            probabilities[first] / rest * probabilities[second] / (rest - probabilities[first])
        )
        seen = ((indices[:, 1] == first) & (indices[:, 2] == second)).mean()
        assert abs(seen - expected) < 4 * np.sqrt(expected / tokens) + 1e-4, (first, second)
    evaluated, _ = routed_by(many[:1], key=None, **options)
    np.testing.assert_array_equal(evaluated.indices, [[0, 4, 2]])


def test_sampling_all_of_them_can_leave_out_the_best():
    many = np.tile([1.0, 0.0, 0.0], (4000, 1))
    routing, _ = routed_by(many, key=jax.random.key(1), top_k=1, sample_top_k=1)
    share = (np.asarray(routing.indices) == 0).mean()
    assert share == pytest.approx(softmax(np.array([1.0, 0.0, 0.0]))[0], abs=0.03)


def expected_statistics(logits, indices, gates, counted) -> dict[str, np.ndarray]:
    probabilities = softmax(logits)
    log_normaliser = np.log(np.exp(logits).sum(-1))
    chosen = (indices[..., None] == np.arange(logits.shape[-1])).astype(float)
    entropy = -(probabilities * np.log(probabilities)).sum(-1)
    return {
        "tokens": counted.sum(),
        "probability": counted @ probabilities,
        "choices": np.einsum("tke,t->e", chosen, counted),
        "gates": np.einsum("tke,tk,t->e", chosen, gates, counted),
        "entropy": counted @ entropy,
        "squared_log_normaliser": counted @ log_normaliser**2,
        "dropped": np.float32(0),
    }


def test_statistics_are_sums_over_counted_tokens():
    logits = np.random.default_rng(2).normal(size=(2 * ROWS, EXPERTS))
    counted = np.resize(np.array([1, 0, 1, 1, 0, 1, 1, 1, 0, 0, 1, 1], bool), 2 * ROWS)
    none = np.zeros((2 * ROWS, 2))
    assert {f.name for f in dataclasses.fields(RouterStatistics)} == set(
        expected_statistics(logits, none, none, counted * 1.0)
    )
    for mask in (None, counted):
        routing, statistics = routed_by(logits, counted=None if mask is None else mask[None])
        weight = np.ones(2 * ROWS) if mask is None else mask.astype(float)
        expected = expected_statistics(
            logits, np.asarray(routing.indices), np.asarray(routing.gates), weight
        )
        for name, value in expected.items():
            actual = getattr(statistics, name)
            assert actual.dtype == jnp.float32
            np.testing.assert_allclose(actual, value, rtol=1e-5, err_msg=name)


def test_statistics_of_microbatches_add_up_and_ignore_what_is_masked():
    logits = np.random.default_rng(3).normal(size=(2 * ROWS, EXPERTS))
    _, whole = routed_by(logits)
    _, first = routed_by(logits[:ROWS])
    _, second = routed_by(logits[ROWS:])
    together = jax.tree.map(jnp.add, first, second)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), together, whole)
    # Whatever stands in masked places changes neither numerator nor denominator.
    noise = 9 * np.random.default_rng(4).normal(size=(ROWS, EXPERTS))
    noisy = np.concatenate([logits[:ROWS], noise])
    _, masked = routed_by(noisy, counted=np.arange(2 * ROWS)[None] < ROWS)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), masked, first)


def test_extremes():
    tokens = ROWS
    _, uniform = routed_by(np.zeros((tokens, EXPERTS)), top_k=EXPERTS)
    np.testing.assert_allclose(uniform.entropy, tokens * np.log(EXPERTS), rtol=1e-6)
    np.testing.assert_allclose(uniform.probability, np.full(EXPERTS, tokens / EXPERTS), rtol=1e-6)
    np.testing.assert_array_equal(uniform.choices, np.full(EXPERTS, tokens))
    certain = np.where(np.arange(tokens)[:, None] % EXPERTS == np.arange(EXPERTS), 200.0, 0.0)
    routing, one_hot = routed_by(certain, top_k=1)
    np.testing.assert_array_equal(routing.indices[:, 0], np.arange(tokens) % EXPERTS)
    np.testing.assert_array_equal(routing.gates, np.ones((tokens, 1)))
    assert abs(float(one_hot.entropy)) < 1e-4
    np.testing.assert_allclose(one_hot.probability, np.full(EXPERTS, tokens / EXPERTS), rtol=1e-6)
    np.testing.assert_allclose(one_hot.squared_log_normaliser, tokens * 200.0**2, rtol=1e-5)


@pytest.mark.parametrize("kind", ["linear", "mlp", "gmm"])
def test_gradient_reaches_every_parameter(kind):
    router = router_of(ExpertsConfig(EXPERTS, 2, RouterConfig(kind, hidden=7)))
    graph, parameters = nnx.split(router)
    x = jnp.asarray(np.random.default_rng(5).normal(size=(1, 9, WIDTH)), jnp.float32)

    @jax.jit
    @jax.grad
    def gradient(parameters):
        routing, statistics = apply(graph, parameters, x)
        return (routing.gates**2).sum() + statistics.entropy

    norms = jax.tree.map(lambda g: float(jnp.linalg.norm(g)), gradient(parameters))
    assert all(norm > 0 for norm in jax.tree.leaves(norms))
