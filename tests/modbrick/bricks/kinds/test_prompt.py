"""A prompt is what its embeddings would be as tokens, however the call is made."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from modbrick.bricks import BrickConfig, LoRA, Plugged, Prefix, Prompt, initial_bricks, plugged
from modbrick.config import ModelConfig, RopeConfig, SegmentConfig
from modbrick.config.families import dense
from modbrick.decoder.decoder import Decoder
from modbrick.decoder.functional import functional_decoder, initial_parameters
from modbrick.errors import InputError
from modbrick.inference import GREEDY, generate
from modbrick.layers.cache import Cache
from tests.compilation import max_traces
from tests.modbrick.bricks.tiny import MODEL
from tests.modbrick.layers.tiny import run

pytestmark = pytest.mark.usefixtures("quick_compilation")


def softmax(**changes: Any) -> ModelConfig:
    """A dense model of two layers with softmax attention."""
    config = dense(
        vocabulary=31, width=16, layers=2, heads=4, feed_forward_width=16, dtype="float32"
    ).replace(tied_head=False)
    (segment,) = config.segments
    attention = dataclasses.replace(segment.layer.attention, kind="softmax", **changes)
    layer = dataclasses.replace(segment.layer, attention=attention)
    return config.replace(segments=(SegmentConfig(layer, 2),))


ROTARY = softmax(rope=RopeConfig(base=100.0), key_value_heads=2)
MODELS = {
    "softmax, rotary": ROTARY,
    "softmax, rotary, window": softmax(rope=RopeConfig(base=100.0), window=4),
    "stick-breaking, experts": MODEL,
}
LENGTH = 5
DOCUMENT = np.random.default_rng(1).integers(0, 31, LENGTH)
TOKENS = np.random.default_rng(2).integers(0, 31, (3, 6))
BRICKS = {
    "ask": BrickConfig(("prompt",), Prompt(length=LENGTH)),
    "beg": BrickConfig(("prompt",), Prompt(length=3)),
}

_models: dict[str, tuple[Decoder, Plugged]] = {}


def model_and_prompts(name: str) -> tuple[Decoder, Plugged]:
    """A model, and prompts that are the embeddings of the document and of its last tokens."""
    if name not in _models:
        config = MODELS[name].replace(initial_scale=0.4)
        model = functional_decoder(config).bind(initial_parameters(config, jax.random.key(0)))
        embeddings = model.embed(jnp.asarray(DOCUMENT)[None])[0]
        values = {
            "bricks.ask.decoder.prompt.embeddings": embeddings,
            "bricks.beg.decoder.prompt.embeddings": embeddings[-3:],
        }
        _models[name] = model, plugged(config, BRICKS, values)
    return _models[name]


def behind(model: Decoder, documents: list[np.ndarray], tokens: np.ndarray) -> np.ndarray:
    """Logits of tokens of each row behind those of its document."""
    padding = LENGTH - np.array([len(document) for document in documents])
    fronts = [np.pad(d, (p, 0)) for d, p in zip(documents, padding, strict=True)]
    whole = np.concatenate([np.stack(fronts), tokens], axis=1)
    mask = np.arange(whole.shape[1]) >= padding[:, None]
    return np.asarray(run(model, whole, attention_mask=jnp.asarray(mask)).logits)[:, LENGTH:]


def assert_close(actual: Any, expected: Any) -> None:
    error = np.linalg.norm(actual - expected) / np.linalg.norm(expected)
    assert error < 1e-5, error


@pytest.mark.parametrize("name", MODELS)
def test_examples_get_the_logits_that_they_get_behind_their_prompt(name: str) -> None:
    model, prompts = model_and_prompts(name)
    ids = prompts.ids(["ask", "beg", None])
    found = run(model, TOKENS, bricks=prompts, brick_ids=ids)
    assert found.logits.shape == (*TOKENS.shape, 31), "of the given tokens only"
    wanted = behind(model, [DOCUMENT, DOCUMENT[-3:], DOCUMENT[:0]], TOKENS)
    for logits, row in zip(found.logits, wanted, strict=True):
        assert_close(logits, row)
    plain = run(model, TOKENS)
    assert np.abs(found.logits[0] - plain.logits[0]).max() > 1e-2
    for router, statistics in found.router_statistics.items():
        assert statistics.tokens.sum() == plain.router_statistics[router].tokens.sum()


def test_packed_documents_have_it_each_for_itself() -> None:
    """Of a row of two documents and padding the first one has a prompt, the second another."""
    model, prompts = model_and_prompts("softmax, rotary")
    packed = np.concatenate([TOKENS[0], TOKENS[1, :4], [0, 0]])[None]
    segments = np.array([[1] * 6 + [2] * 4 + [0] * 2])
    positions = np.array([[*range(6), *range(4), 0, 0]])
    ids = np.array([[0] * 6 + [1] * 4 + [-1] * 2])
    found = run(
        model,
        packed,
        segment_ids=jnp.asarray(segments),
        positions=jnp.asarray(positions),
        bricks=prompts,
        brick_ids=jnp.asarray(ids),
    ).logits[0]
    first, second = behind(model, [DOCUMENT, DOCUMENT[-3:]], TOKENS[:2])
    assert_close(found[:6], first)
    assert_close(found[6:10], second[:4])


def test_with_a_cache_it_is_encoded_once() -> None:
    """Prompts of other lengths, padded on the left, token by token."""
    model, prompts = model_and_prompts("softmax, rotary, window")
    ids = jnp.asarray(prompts.ids(["ask", "beg", None]))
    whole = run(model, TOKENS, bricks=prompts, brick_ids=ids).logits
    encoded = jax.jit(lambda bricks: model.encoded(bricks))(prompts)
    assert "prompt" not in encoded.decoder
    padded = np.concatenate([np.zeros((3, 2), int), TOKENS], axis=1)
    mask = np.broadcast_to(np.arange(8) >= 2, padded.shape)
    with max_traces(Decoder, "keys_and_values", 0):
        found = run(
            model,
            padded[:, :6],
            attention_mask=jnp.asarray(mask[:, :6]),
            cache=Cache.empty(model.config, 3, 8),
            bricks=encoded,
            brick_ids=ids,
        )
        logits = [found.logits[:, 2:]]
        for step in (6, 7):
            next_token = padded[:, step : step + 1]
            found = run(model, next_token, cache=found.cache, bricks=encoded, brick_ids=ids)
            logits.append(found.logits)
    assert_close(np.concatenate(logits, axis=1), whole)


def test_generation_goes_on_behind_it() -> None:
    model, prompts = model_and_prompts("softmax, rotary")
    given = [[1, 2], [3], [4, 5, 6]]
    found = generate(
        model,
        given,
        max_new_tokens=5,
        sampling=GREEDY,
        bricks=prompts,
        brick_ids=prompts.ids(["ask", None, "ask"]),
    )
    behind_tokens = [[*DOCUMENT.tolist(), *given[0]], given[1], [*DOCUMENT.tolist(), *given[2]]]
    expected = generate(model, behind_tokens, max_new_tokens=5, sampling=GREEDY)
    assert found.tokens == expected.tokens
    # Plugged in, it is found as well.
    alone = model.plug(plugged(model.config, {"ask": BRICKS["ask"]}, _values(prompts)))
    again = generate(alone, [given[0]], max_new_tokens=5, sampling=GREEDY)
    assert again.tokens[0] == expected.tokens[0]


def _values(prompts: Plugged) -> dict[str, jax.Array]:
    (bank,) = prompts.decoder["prompt"]
    return {"bricks.ask.decoder.prompt.embeddings": bank.leaves["embeddings"][0]}


def test_gradients_are_those_of_the_embeddings_of_tokens() -> None:
    """Of tokens that stand nowhere else."""
    model, _ = model_and_prompts("softmax, rotary")
    config = model.config
    document, tokens = np.arange(26, 31), TOKENS % 26
    parameters = initial_parameters(config, jax.random.key(0))
    decoder = functional_decoder(config)

    def loss(logits: Any) -> jax.Array:
        return (logits * jnp.sin(jnp.arange(31.0))).sum()

    @jax.jit
    def as_tokens(embedding: Any) -> Any:
        whole = np.concatenate([np.tile(document, (3, 1)), tokens], axis=1)
        model = decoder.bind({**parameters, "embedding": embedding})
        return loss(model(jnp.asarray(whole)).logits[:, LENGTH:])

    @jax.jit
    def as_prompt(embeddings: Any) -> Any:
        values = {"bricks.ask.decoder.prompt.embeddings": embeddings}
        plug = plugged(config, {"ask": BRICKS["ask"]}, values)
        ids = jnp.asarray(plug.ids(["ask"] * 3))
        model = decoder.bind(parameters)
        return loss(model(jnp.asarray(tokens), bricks=plug, brick_ids=ids).logits)

    embedding = parameters["embedding"]
    expected = jax.grad(as_tokens)(embedding)[26:]
    assert_close(jax.grad(as_prompt)(embedding[26:]), expected)


def test_beside_other_bricks_it_is_encoded_without_them_and_stands_farthest() -> None:
    """As a prefix of its keys and values would."""
    model, _ = model_and_prompts("softmax, rotary")
    config, memory = model.config, ("layer.*.attention.memory",)
    bricks = {
        "ask": BRICKS["ask"],
        "low": BrickConfig(("layer.*.attention.query",), LoRA(rank=2)),
        "near": BrickConfig(memory, Prefix(length=2)),
        "far": BrickConfig(memory, Prefix(length=LENGTH)),
    }
    random = np.random.default_rng(4)
    values = {
        path: value + random.normal(0.0, 0.3, value.shape).astype(np.float32)
        for path, value in initial_bricks(config, bricks, jax.random.key(0)).items()
    }
    embeddings = values["bricks.ask.decoder.prompt.embeddings"]
    cached = model.keys_and_values(embeddings[None], jnp.array([LENGTH]))["0"]
    for leaf, found in (("keys", cached.keys), ("values", cached.values)):
        path = f"bricks.far.segments.0.attention.memory.{leaf}"
        values[path] = found.reshape(2, LENGTH, -1)
    plug = plugged(config, bricks, values)
    sets = (["ask+low+near", "near+low+ask", "low"], ["far+low+near", "far+near+low", "low"])
    as_prompt, as_prefix = (
        run(model, TOKENS, bricks=plug, brick_ids=plug.ids(given)).logits for given in sets
    )
    assert_close(as_prompt, as_prefix)
    assert np.abs(as_prompt[0] - as_prompt[2]).max() > 1e-2


def test_one_longer_than_the_context_is_refused() -> None:
    short = MODEL.replace(context=8)
    with pytest.raises(
        InputError, match="a prompt of length 9 is longer than the model's context, 8"
    ):
        plugged(short, {"ask": BrickConfig(("prompt",), Prompt(length=9))}, {})
    with pytest.raises(InputError, match="a prompt has a length of at least 1, got 0"):
        Prompt(length=0)
