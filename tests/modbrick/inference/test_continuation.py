"""Texts continued by a model: what is handed out as it comes is what is returned."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from modbrick import load_model
from modbrick.checkpoints import Metadata, save_model
from modbrick.config import (
    AttentionConfig,
    FeedForwardConfig,
    LayerConfig,
    ModelConfig,
    SegmentConfig,
)
from modbrick.data import load_tokenizer
from modbrick.decoder.decoder import Decoder
from modbrick.errors import InputError
from modbrick.inference import GREEDY
from modbrick.inference.continuation import (
    checkpoint_tokenizer,
    continue_texts,
    encode_prompts,
)

TOKENIZER = load_tokenizer("bytes")
LAYER = LayerConfig(AttentionConfig(2, 8), FeedForwardConfig(16))
CONFIG = ModelConfig(TOKENIZER.vocabulary, 16, (SegmentConfig(LAYER),), dtype="float32")
PROMPTS = ["Grüße, 日本", "x ="]


@pytest.fixture(scope="module")
def model() -> Decoder:
    """A model of random values."""
    graph, state = nnx.split(nnx.eval_shape(lambda: Decoder(CONFIG)))
    rng = np.random.default_rng(0)
    values = jax.tree.map(lambda x: jnp.float32(rng.normal(0.0, 0.5, x.shape)), state)
    return nnx.merge(graph, values)


def test_pieces_join_to_the_texts_and_texts_are_those_of_the_ids(model: Decoder) -> None:
    pieces, ended = ["", ""], []

    def on_text(index: int, text: str, last: bool) -> None:
        pieces[index] += text
        ended.extend([index] * last)

    options: dict[str, Any] = {"max_new_tokens": 12, "sampling": GREEDY}
    found = continue_texts(model, TOKENIZER, PROMPTS, on_text=on_text, **options)
    assert tuple(pieces) == found.texts
    assert sorted(ended) == [0, 1]
    for record, prompt, text in zip(found.to_mapping(), PROMPTS, found.texts, strict=True):
        assert (record["prompt"], record["text"]) == (prompt, text)
        assert text == TOKENIZER.decode([t for t in record["tokens"] if t < 256])
        assert len(record["log_probabilities"]) == len(record["tokens"])
    stop = found.texts[0][4:6]
    cut = continue_texts(model, TOKENIZER, PROMPTS, stop=[stop], **options)
    assert cut.texts == tuple(text.split(stop)[0] for text in found.texts)


def test_a_text_with_a_token_that_the_model_has_no_row_for_is_refused(
    model: Decoder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    parameters = nnx.as_pure(nnx.state(model))
    identity, text = dataclasses.asdict(TOKENIZER.identity), TOKENIZER.to_json()
    metadata = Metadata(CONFIG, tokenizer=identity)
    save_model(tmp_path / "fits", parameters, metadata, tokenizer=text)
    assert checkpoint_tokenizer(tmp_path / "fits").vocabulary == TOKENIZER.vocabulary
    small = CONFIG.replace(vocabulary=100)
    metadata = dataclasses.replace(metadata, model=small)
    cut = {**parameters, "embedding": parameters["embedding"][:100]}
    cut["head"] = {"weight": parameters["head"]["weight"][:, :100]}
    save_model(tmp_path / "small", cut, metadata, tokenizer=text)
    with caplog.at_level(logging.WARNING, logger="absl"):
        found = checkpoint_tokenizer(tmp_path / "small")
    assert "257 tokens, its model only 100" in caplog.text
    with pytest.raises(InputError, match="token id 256 is not in a vocabulary of 100"):
        continue_texts(load_model(tmp_path / "small"), found, ["a"], max_new_tokens=1)


def test_special_tokens_in_prompts_are_such_on_request() -> None:
    text = "<|end_of_document|>ab"
    assert encode_prompts(TOKENIZER, [text]) == [[256, *text.encode()]]
    assert encode_prompts(TOKENIZER, [text], special_tokens=True) == [[256, 97, 98]]
    assert encode_prompts(TOKENIZER, ["ab"], special_tokens=True) == [[256, 97, 98]]
