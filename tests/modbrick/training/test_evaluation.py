"""Evaluation counts every held-out target once, whatever the batches."""

from __future__ import annotations

import math
from typing import Any

import jax
import numpy as np
import pytest

from modbrick.config.families import moduleformer
from modbrick.data import Dataset, evaluation_batches
from modbrick.decoder.decoder import Decoder
from modbrick.decoder.functional import functional_decoder
from modbrick.execution import ExecutionConfig
from modbrick.training.evaluation import EvaluationResult, EvaluationStep, evaluate, evaluation_step
from tests.compilation import max_traces
from tests.modbrick.data.conftest import random_texts, write_dataset

TEXTS = {"code": random_texts(1, 7, 30), "prose": [*random_texts(2, 4, 20), "Grüße, 日本"]}
pytestmark = pytest.mark.usefixtures("quick_compilation")
LENGTH = 48  # longer than any text
END = 256
EXECUTION = ExecutionConfig(head_chunk=16, attention="reference", dispatch="reference")
CONFIG = moduleformer(
    vocabulary=257,
    width=16,
    layers=2,
    heads=2,
    attention_width=8,
    feed_forward_width=12,
    attention_experts=3,
    feed_forward_experts=4,
    router_width=8,
    dtype="float32",
)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    directory = tmp_path_factory.mktemp("evaluation") / "data"
    return write_dataset(directory, {"train": {"code": ["text"]}, "held_out": TEXTS})


@pytest.fixture(scope="module")
def parameters() -> Any:
    """Random values large enough that no prediction is like another."""
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: np.float32(rng.normal(0.0, 0.4, leaf.shape)),
        functional_decoder(CONFIG).table.abstract(),
    )


@pytest.fixture(scope="module")
def step() -> EvaluationStep:
    return evaluation_step(CONFIG, EXECUTION)


def run(step: EvaluationStep, parameters: Any, dataset: Dataset, **options: Any) -> Any:
    options = {"sequence_length": LENGTH, "batch_size": 3} | options
    return evaluate(step, parameters, evaluation_batches(dataset, **options))


COST = np.random.default_rng(3).uniform(size=257)


def look_up(parameters: Any, batch: Any) -> Any:
    """A step whose loss of a target is a price by its id."""
    del parameters
    return COST[batch["targets"]] * batch["loss_mask"], {}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"batch_size": 1},
        {"batch_size": 64},
        {"sequence_length": 7},
        {"sequence_length": 7, "context": 3},
        {"sequence_length": 1000},
    ],
)
def test_every_target_counts_once(dataset: Dataset, options: dict[str, int]) -> None:
    result = run(look_up, None, dataset, **options)
    assert list(result.domains) == list(TEXTS)
    for name, texts in TEXTS.items():
        targets = [np.array([*text.encode(), END]) for text in texts]
        found = result.domains[name]
        assert found.tokens == sum(map(len, targets))
        assert found.bytes == sum(len(text.encode()) for text in texts)
        assert found.documents == len(texts)
        assert found.loss * found.tokens == pytest.approx(sum(COST[t].sum() for t in targets))
    assert result.total.tokens == sum(r.tokens for r in result.domains.values())
    assert result.total.loss * result.total.tokens == pytest.approx(
        sum(r.loss * r.tokens for r in result.domains.values())
    )


def test_figures_are_those_of_each_document_alone(
    dataset: Dataset, step: EvaluationStep, parameters: Any
) -> None:
    """Against the model's logits, one document a row, in double precision."""
    texts = [text for found in TEXTS.values() for text in found]
    ids = np.full((len(texts), LENGTH + 1), END, np.int32)
    for row, text in zip(ids, texts, strict=True):
        encoded = list(text.encode())
        row[1 : len(encoded) + 1] = encoded
    decoder = functional_decoder(CONFIG, EXECUTION)
    call = jax.jit(lambda parameters, ids: decoder.bind(parameters)(ids).logits)
    logits = np.asarray(call(parameters, ids[:, :-1]), np.float64)
    logarithms = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    result = run(step, parameters, dataset)
    first = 0
    for name, found in TEXTS.items():
        nats = 0.0
        for index, text in enumerate(found, first):
            count = len(text.encode()) + 1
            nats -= logarithms[index, np.arange(count), ids[index, 1 : count + 1]].sum()
        first += len(found)
        domain = result.domains[name]
        size = sum(len(text.encode()) for text in found)
        assert domain.loss == pytest.approx(nats / domain.tokens, rel=1e-5)
        assert domain.bits_per_byte == pytest.approx(nats / math.log(2) / size, rel=1e-5)
        assert domain.perplexity == pytest.approx(math.exp(nats / domain.tokens), rel=1e-4)


def test_the_result_is_independent_of_the_batch_size(
    dataset: Dataset, step: EvaluationStep, parameters: Any
) -> None:
    # Batches of every size and domain, the last and shortest too, are of one shape.
    with max_traces(Decoder, "features", 2):
        small, large = (run(step, parameters, dataset, batch_size=n) for n in (3, 5))
    assert list(small.domains) == list(large.domains)
    for name, domain in [*small.domains.items(), ("total", small.total)]:
        other = large.total if name == "total" else large.domains[name]
        assert domain.loss == pytest.approx(other.loss, rel=1e-6)
        assert (domain.tokens, domain.bytes) == (other.tokens, other.bytes)
    assert set(small.router_health) == {"segments.0.attention", "segments.0.feed_forward"}
    for name, health in small.router_health.items():
        np.testing.assert_allclose(health.load, large.router_health[name].load, atol=1e-9)
        np.testing.assert_allclose(health.load.sum(-1), 1.0)


def test_stopping_gives_no_result_and_asks_for_no_more(dataset: Dataset) -> None:
    batches = evaluation_batches(dataset, sequence_length=LENGTH, batch_size=1)
    assert len(batches) > 3
    done: list[None] = []
    stopped = evaluate(
        look_up, None, batches, progress=lambda: done.append(None), stop=lambda: len(done) == 2
    )
    assert stopped is None
    assert len(done) == 2
    done.clear()
    whole = evaluate(look_up, None, batches, progress=lambda: done.append(None), stop=lambda: False)
    assert isinstance(whole, EvaluationResult)
    assert len(done) == len(batches)


def test_a_hopeless_model_has_a_finite_perplexity(dataset: Dataset) -> None:
    def hopeless(parameters: Any, batch: Any) -> Any:
        del parameters
        return 1e4 * batch["loss_mask"], {}

    result = run(hopeless, None, dataset)
    assert result.total.loss == pytest.approx(1e4)
    assert math.isfinite(result.total.perplexity)
    mapping = result.to_mapping()
    assert mapping["domains"]["code"]["documents"] == len(TEXTS["code"])
    assert mapping["loss"] == result.total.loss
