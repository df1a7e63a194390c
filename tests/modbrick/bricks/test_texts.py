"""Documents and prompts made of tokens."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from modbrick.bricks import document_brick, plugged, prompt_brick
from modbrick.errors import InputError
from modbrick.library import Manifest, read_brick, write_brick
from tests.modbrick.bricks.kinds.test_prompt import (
    DOCUMENT,
    MODELS,
    TOKENS,
    assert_close,
    behind,
    model_and_prompts,
)
from tests.modbrick.layers.tiny import run

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.mark.parametrize("name", MODELS)
def test_a_question_gets_the_logits_that_it_gets_behind_the_document(
    name: str, tmp_path: Path
) -> None:
    model, _ = model_and_prompts(name)
    brick = document_brick(model, DOCUMENT.tolist())
    file = tmp_path / "document.brick"
    write_brick(file, brick, Manifest.of("document", brick.config, model.config))
    brick, _ = read_brick(file)
    values = brick.parameters("document", model.config)
    plug = plugged(model.config, {"document": brick.config}, values)
    expected = behind(model, [DOCUMENT] * len(TOKENS), TOKENS)
    assert_close(run(model, TOKENS, bricks=plug).logits, expected)
    ids = plug.ids(["document", None, "document"])
    found = run(model, TOKENS, bricks=plug, brick_ids=ids).logits
    assert_close(found[::2], expected[::2])


def test_a_prompt_begins_as_the_text() -> None:
    model, _ = model_and_prompts("softmax, rotary")
    brick = prompt_brick(model, DOCUMENT.tolist())
    plug = plugged(model.config, {"ask": brick.config}, brick.parameters("ask", model.config))
    found = run(model, TOKENS, bricks=plug).logits
    assert_close(found, behind(model, [DOCUMENT] * len(TOKENS), TOKENS))


def test_texts_that_cannot_be_are_refused() -> None:
    model, _ = model_and_prompts("softmax, rotary")
    for make in (document_brick, prompt_brick):
        with pytest.raises(InputError, match="needs at least one token"):
            make(model, [])
        with pytest.raises(InputError, match="token ids from 3 to 31 do not fit"):
            make(model, [3, 31])
    with pytest.raises(InputError, match="is longer than the model's context"):
        prompt_brick(model, [1] * (model.config.context + 1))
    assert np.asarray(document_brick(model, [1]).values["layer.1.attention.memory.keys"]).any()
