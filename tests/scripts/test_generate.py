"""The script as a user runs it, on a model of random values."""

from __future__ import annotations

import dataclasses
import json
import subprocess
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

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
from modbrick.decoder.functional import functional_decoder
from modbrick.inference import GREEDY, generate
from tests import programs

ROOT = Path(__file__).resolve().parents[2]
PROMPTS = ["Grüße, 日本", "x ="]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> str:
    tokenizer = load_tokenizer("bytes")
    layer = LayerConfig(AttentionConfig(2, 8), FeedForwardConfig(16))
    config = ModelConfig(tokenizer.vocabulary, 16, (SegmentConfig(layer),), dtype="float32")
    random = np.random.default_rng(0)
    parameters = jax.tree.map(
        lambda leaf: jnp.asarray(random.normal(0.0, 0.5, leaf.shape), jnp.float32),
        functional_decoder(config).table.abstract(),
    )
    directory = tmp_path_factory.mktemp("model") / "random"
    metadata = Metadata(config, tokenizer=dataclasses.asdict(tokenizer.identity))
    save_model(directory, parameters, metadata, tokenizer=tokenizer.to_json())
    return str(directory)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return programs.run([ROOT / "scripts/generate.py", *arguments])


def test_one_json_object_tells_everything(checkpoint, tmp_path):
    (tmp_path / "prompt.txt").write_text(PROMPTS[1], encoding="utf-8")
    done = run(
        f"--checkpoint={checkpoint}",
        f"--prompt={PROMPTS[0]}",
        f"--prompt_file={tmp_path / 'prompt.txt'}",
        "--greedy",
        "--max_new_tokens=12",
        "--json",
    )
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout.splitlines()[-1])
    tokenizer = load_tokenizer("bytes")
    start, end = tokenizer.start_of_document, tokenizer.end_of_document
    assert start is not None
    assert end is not None
    prompts = [[start, *tokenizer.encode(prompt).tolist()] for prompt in PROMPTS]
    expected = generate(
        load_model(checkpoint),
        prompts,
        max_new_tokens=12,
        sampling=GREEDY,
        stop_tokens=[end],
    )
    assert [s["tokens"] for s in record["sequences"]] == expected.tokens
    assert [s["finish_reason"] for s in record["sequences"]] == expected.finish_reasons
    for sequence, prompt, tokens in zip(record["sequences"], PROMPTS, expected.tokens, strict=True):
        assert sequence["prompt"] == prompt
        assert sequence["text"] == tokenizer.decode(tokens)
        assert len(sequence["log_probabilities"]) == len(tokens)


def test_text_comes_prompt_by_prompt_and_ends_at_a_stop_text(checkpoint):
    options = [f"--checkpoint={checkpoint}", "--max_new_tokens=12", "--seed=3"]
    prompts = [f"--prompt={prompt}" for prompt in PROMPTS]
    done = run(*options, *prompts, "--json")
    texts = [s["text"] for s in json.loads(done.stdout)["sequences"]]
    stop = texts[0][4:6]
    assert stop
    shown = run(*options, *prompts, f"--stop={stop}")
    assert shown.returncode == 0, shown.stderr
    kept = [text.split(stop)[0] for text in texts]
    assert shown.stdout == "".join(
        f"--- {n} of 2\n{prompt}{text}\n"
        for n, prompt, text in zip((1, 2), PROMPTS, kept, strict=True)
    )
    assert "tokens in" in shown.stderr


def test_special_tokens_in_prompts_are_such_on_request(checkpoint):
    options = ["--special_tokens", "--greedy", "--max_new_tokens=12", "--json"]
    prompts = ["--prompt=x =", "--prompt=<|end_of_document|>x ="]
    done = run(f"--checkpoint={checkpoint}", *options, *prompts)
    plain, marked = json.loads(done.stdout.splitlines()[-1])["sequences"]
    assert plain["log_probabilities"] == marked["log_probabilities"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prompt=x", "--checkpoint={nowhere}"], "no checkpoint"),
        (["--checkpoint={checkpoint}"], "--prompt=TEXT"),
        (
            ["--checkpoint={checkpoint}", "--prompt=x", "--top_p=2"],
            "top_p must be in (0, 1], got 2",
        ),
        (["--checkpoint={checkpoint}", "--prompt=x", "--greedy", "--top_k=3"], "--top_k"),
    ],
)
def test_bad_input_is_one_line(checkpoint, tmp_path, arguments, message):
    done = run(*(a.format(checkpoint=checkpoint, nowhere=tmp_path / "none") for a in arguments))
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert message in done.stderr
