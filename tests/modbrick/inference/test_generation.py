from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from modbrick.bricks import BrickConfig, Knowledge, LoRA, initial_bricks, plugged
from modbrick.config import (
    AttentionConfig,
    ExpertsConfig,
    FeedForwardConfig,
    LayerConfig,
    ModelConfig,
    RopeConfig,
    RouterConfig,
    SegmentConfig,
)
from modbrick.decoder.decoder import Decoder
from modbrick.errors import InputError
from modbrick.inference import GREEDY, SamplingConfig, generate, generation
from modbrick.inference.prompts import rounded_up
from tests.compilation import max_traces

VOCABULARY = 23
EXPERTS = ExpertsConfig(4, 2, RouterConfig("linear"))
SPARSE = LayerConfig(AttentionConfig(2, 8, experts=EXPERTS), FeedForwardConfig(12, experts=EXPERTS))
ROTATED = LayerConfig(
    AttentionConfig(4, 4, "softmax", key_value_heads=2, window=5, rope=RopeConfig()),
    FeedForwardConfig(16),
)
PROMPTS = [[1, 2, 3], [4], [5, 6, 7, 8, 9, 10, 11]]
NEW = 8
STOPS = 3  # as many wherever there are any: their number is a shape of the compiled functions
SEED = 10  # of parameters whose greedy texts do not fall into a loop at once


pytestmark = pytest.mark.usefixtures("quick_compilation")


def model_of(*layers: LayerConfig) -> Decoder:
    config = ModelConfig(VOCABULARY, 16, tuple(map(SegmentConfig, layers)), dtype="float32")
    graph, state = nnx.split(nnx.eval_shape(lambda: Decoder(config)))
    random = np.random.default_rng(SEED)

    def value(path, leaf):
        centre = 1.0 if path[-1].key == "scale" else 0.0
        return jnp.asarray(random.normal(centre, 0.5, leaf.shape), jnp.float32)

    parameters = jax.tree_util.tree_map_with_path(value, nnx.as_pure(state))
    return nnx.merge(graph, parameters)


@pytest.fixture(scope="module")
def model():
    """Both kinds of attention, the tokens of a batch before the same experts."""
    return model_of(SPARSE, ROTATED)


@pytest.fixture(scope="module")
def small():
    """For what does not depend on the layers: compiles in a third of the time."""
    return model_of(ROTATED)


@pytest.fixture(scope="module")
def distribution(model):
    """Log-probabilities of the token after a text, by a call without a cache."""
    graph, parameters = nnx.split(model)

    @jax.jit
    def run(tokens, mask):
        logits = nnx.merge(graph, parameters)(tokens, attention_mask=mask).logits
        return jax.nn.log_softmax(logits[0, -1])

    def after(text: list[int]) -> np.ndarray:
        tokens, mask = np.zeros((1, 24), np.int32), np.zeros((1, 24), bool)
        tokens[0, 24 - len(text) :], mask[0, 24 - len(text) :] = text, True
        return np.asarray(run(tokens, mask))

    return after


@pytest.fixture(scope="module")
def greedily(model):
    return functools.partial(generate, model, max_new_tokens=NEW, sampling=GREEDY)


@pytest.fixture(scope="module")
def batch(greedily):
    return greedily(PROMPTS)


@pytest.fixture(scope="module")
def small_greedily(small):
    return functools.partial(generate, small, max_new_tokens=NEW, sampling=GREEDY)


@pytest.fixture(scope="module")
def small_batch(small_greedily):
    return small_greedily(PROMPTS)


def test_greedy_is_the_argmax_without_a_cache(batch, distribution):
    for prompt, tokens, scores in zip(PROMPTS, batch.tokens, batch.log_probabilities, strict=True):
        assert len(tokens) == len(scores) == NEW
        text = list(prompt)
        for token, score in zip(tokens, scores, strict=True):
            expected = distribution(text)
            assert token == int(expected.argmax())
            assert score == pytest.approx(expected[token], abs=1e-4)
            text.append(token)
    assert batch.finish_reasons == ["length"] * 3
    assert len(set(map(tuple, batch.tokens))) == 3


def test_a_prompt_alone_gets_what_it_gets_in_a_batch(batch, greedily):
    for prompt, tokens in zip(PROMPTS, batch.tokens, strict=True):
        assert greedily([prompt]).tokens == [tokens]


def test_stop_tokens_end_a_sequence_and_not_the_others(small_batch, small_greedily):
    stop = next(t for t in small_batch.tokens[0] if t not in small_batch.tokens[2])
    result = small_greedily(PROMPTS, stop_tokens=[stop] * STOPS)
    ended = 0
    for whole, tokens, reason in zip(
        small_batch.tokens, result.tokens, result.finish_reasons, strict=True
    ):
        if stop in whole:
            assert tokens == whole[: whole.index(stop) + 1]
            ended += 1
        else:
            assert tokens == whole
        assert reason == ("stop" if stop in whole else "length")
    assert 0 < ended < 3
    assert list(map(len, result.log_probabilities)) == list(map(len, result.tokens))


def test_the_loop_ends_when_all_have_stopped(small_batch, small_greedily):
    """The cache of a stopped batch holds no tokens after the last end."""
    seen = []
    original = generation._decode

    def spy(*arguments, **options):
        seen.append(int(original(*arguments, **options).step))
        raise InterruptedError

    stops = [tokens[1] for tokens in small_batch.tokens]
    assert len(stops) == STOPS
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generation, "_decode", spy)
        with pytest.raises(InterruptedError):
            small_greedily(PROMPTS, stop_tokens=stops)
    assert seen[0] <= 2


def test_tokens_come_one_by_one_and_a_caller_can_stop(batch, greedily):
    events: list[tuple[int, int]] = []

    def on_tokens(index: int, tokens: list[int]) -> bool:
        events.extend((index, token) for token in tokens)
        return index == 1 and sum(i == 1 for i, _ in events) == 3

    result = greedily(PROMPTS, on_tokens=on_tokens)
    assert result.tokens == [batch.tokens[0], batch.tokens[1][:3], batch.tokens[2]]
    assert result.finish_reasons == ["length", "stop", "length"]
    for index, tokens in enumerate(result.tokens):
        assert [token for i, token in events if i == index] == tokens
    assert [index for index, _ in events[:6]] == [0, 1, 2, 0, 1, 2]


@pytest.mark.parametrize("top_p", [pytest.param(None, marks=pytest.mark.verify), 0.9])
def test_samples_depend_on_the_seed_and_the_prompt_only(small, top_p):
    sampled = functools.partial(
        generate, small, max_new_tokens=NEW, sampling=SamplingConfig(1.5, 12, top_p)
    )
    result = sampled(PROMPTS, seed=[7, 8, 9])
    assert sampled(PROMPTS, seed=7).tokens == result.tokens
    assert sampled(PROMPTS[::-1], seed=[9, 8, 7]).tokens == result.tokens[::-1]
    assert sampled([PROMPTS[1]], seed=8).tokens == [result.tokens[1]]
    assert sampled([PROMPTS[1]] * 3, seed=8).tokens[0] == result.tokens[1]
    assert sampled(PROMPTS, seed=[17, 18, 19]).tokens != result.tokens


def test_few_shapes_compile(small):
    """Lengths, limits, temperatures and prompts change; the compiled functions stay."""

    def sampled(prompts, length, temperature, top_p=0.9, **options):
        return generate(
            small,
            prompts,
            max_new_tokens=length,
            sampling=SamplingConfig(temperature, 12, top_p),
            **options,
        )

    sampled([[1], [2], [3]], 5, 1.0)
    with max_traces(Decoder, "features", 0):
        sampled([[3, 4, 5], [6] * 16, [7]], 8, 0.5, seed=4)
        sampled([[3], [6], [7]], 3, 0.5, 0.7, on_tokens=lambda index, tokens: index == 0)
        sampled([[3], [6], [7]], 1, 2.0)
    # More tokens than fit: the prompt's function is compiled again, and that of the tokens.
    with max_traces(Decoder, "features", 1), pytest.raises(AssertionError, match="traced > 1"):
        sampled([[1], [2], [3]], 20, 1.0)
    with max_traces(Decoder, "features", 1):
        sampled([[1], [2], [3]], 20, 1.0)


def test_lengths_are_rounded_up():
    assert [rounded_up(n) for n in (1, 16, 17, 24, 25, 33, 49, 64, 1025)] == [
        16, 16, 24, 24, 32, 48, 64, 64, 1536,
    ]  # fmt: skip
    lengths = [rounded_up(n) for n in range(1, 5000)]
    assert lengths == sorted(lengths)
    assert all(n <= length < 2 * max(n, 16) for n, length in enumerate(lengths, 1))


def test_bricks_are_passed_through(small, small_batch, small_greedily):
    """Prompts choose a brick that favours a token, one that does nothing, or none."""
    brick = BrickConfig(("head",), LoRA(rank=2))
    bricks = {"new": brick, "favour": brick}
    values = initial_bricks(small.config, bricks, jax.random.key(0))
    up = "bricks.favour.decoder.head.up"
    random = np.random.default_rng(0).normal(0.0, 5.0, values[up].shape)
    values[up] = jnp.asarray(random, jnp.float32)
    plug = plugged(small.config, bricks, values)
    result = small_greedily(PROMPTS, bricks=plug, brick_ids=plug.ids([None, "new", "favour"]))
    assert result.tokens[:2] == small_batch.tokens[:2]
    assert result.tokens[2] != small_batch.tokens[2]


def test_features_of_prompts_are_seen_by_what_follows(small, small_batch):
    mark = int(PROMPTS[0][0])
    brick = {"eye": BrickConfig(("features",), Knowledge(mark, width=4))}
    values = initial_bricks(small.config, brick, jax.random.key(0))
    up = "bricks.eye.decoder.features.up"
    values[up] = 3 * jax.random.normal(jax.random.key(1), values[up].shape)
    plug = plugged(small.config, brick, values)
    features = np.random.default_rng(0).normal(size=(len(PROMPTS), 2, 4)).astype(np.float32)
    plain, seeing = (
        generate(
            small,
            PROMPTS,
            max_new_tokens=4,
            sampling=GREEDY,
            bricks=plug,
            brick_features=given,
        )
        for given in (None, {"entities": features})
    )
    for number, prompt in enumerate(PROMPTS):
        row = jnp.asarray([prompt])
        given = {"entities": jnp.asarray(features[number : number + 1])}
        first = small(row, bricks=plug, brick_features=given).logits[0, -1].argmax()
        assert seeing.tokens[number][0] == first
    assert seeing.tokens[0] != plain.tokens[0], "which has the placeholder"


def test_a_graph_and_parameters_do_as_well(model, batch):
    graph, parameters = nnx.split(model)
    result = generate((graph, parameters), PROMPTS, max_new_tokens=NEW, sampling=GREEDY)
    assert result.tokens == batch.tokens


@pytest.mark.parametrize(
    ("prompts", "options", "message"),
    [
        ([], {}, "there is no prompt"),
        ([[1], []], {}, "prompt 1 is empty"),
        ([[1], [2, VOCABULARY]], {}, f"prompt 1: token id {VOCABULARY} is not in a vocabulary"),
        ([[-1]], {}, "prompt 0: token id -1"),
        ([[1]], {"max_new_tokens": 0}, "max_new_tokens must be at least 1, got 0"),
        ([[1]], {"stop_tokens": [99]}, "stop_tokens: token id 99"),
        ([[1], [2]], {"seed": [1]}, "1 seeds do not fit 2 prompts"),
        ([[1]], {"seed": -1}, "at least 0 and below 2\\^32, got -1"),
        ([[1]], {"brick_ids": [0, 1]}, "2 brick_ids do not fit 1 prompts"),
    ],
)
def test_bad_input_is_named(model, prompts, options, message):
    with pytest.raises(InputError, match=message):
        generate(model, prompts, **({"max_new_tokens": 2} | options))


def test_a_diverged_model_is_refused(model):
    graph, parameters = nnx.split(model)
    broken = jax.tree.map(lambda x: x * jnp.nan, nnx.as_pure(parameters))
    with pytest.raises(InputError, match="not finite"):
        generate((graph, broken), PROMPTS, max_new_tokens=NEW, sampling=GREEDY)
