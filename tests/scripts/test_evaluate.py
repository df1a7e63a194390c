"""The script as a user runs it, on a model of random values."""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
from pathlib import Path

import jax
import numpy as np
import pytest

from modbrick.checkpoints import Metadata, save_model
from modbrick.config import (
    AttentionConfig,
    FeedForwardConfig,
    LayerConfig,
    ModelConfig,
    SegmentConfig,
)
from modbrick.data import ByteTokenizer
from modbrick.decoder.functional import functional_decoder
from tests import programs
from tests.modbrick.data.conftest import write_dataset

ROOT = Path(__file__).resolve().parents[2]
TEXTS = {"code": ["x = 1\n" * 9, "pass"], "prose": ["Grüße, 日本"]}
LAYER = LayerConfig(AttentionConfig(2, 8), FeedForwardConfig(16))
CONFIG = ModelConfig(257, 16, (SegmentConfig(LAYER),), context=32, dtype="float32")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    directory = tmp_path_factory.mktemp("data") / "texts"
    write_dataset(directory, {"train": {"code": ["text"]}, "held_out": TEXTS})
    return str(directory)


def save(directory: Path, **changes: object) -> str:
    """Saves a model of random values; changes are to the tokenizer that it says it has."""
    rng = np.random.default_rng(0)
    parameters = jax.tree.map(
        lambda leaf: jax.numpy.asarray(rng.normal(0.0, 0.3, leaf.shape), jax.numpy.float32),
        functional_decoder(CONFIG).abstract_parameters(),
    )
    tokenizer = dataclasses.asdict(ByteTokenizer().identity) | changes
    save_model(directory, parameters, Metadata(CONFIG, tokenizer=tokenizer), step=9)
    return str(directory)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return programs.run([ROOT / "scripts" / "evaluate.py", *arguments])


def test_the_last_line_is_one_json_object_of_everything(data: str, tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    done = run(
        f"--checkpoint={save(tmp_path / 'model')}",
        f"--data={data}",
        "--context=8",
        f"--json={path}",
    )
    assert done.returncode == 0, done.stderr[-2000:]
    record = json.loads(done.stdout.splitlines()[-1])
    assert json.loads(path.read_text()) == record
    assert (record["step"], record["split"]) == (9, "held_out")
    sizes = {name: sum(len(text.encode()) for text in texts) for name, texts in TEXTS.items()}
    assert {name: domain["bytes"] for name, domain in record["domains"].items()} == sizes
    assert record["documents"] == 3
    assert record["tokens"] == record["bytes"] + 3  # and the end of each document
    bits = record["loss"] * record["tokens"] / math.log(2) / record["bytes"]
    assert record["bits_per_byte"] == pytest.approx(bits)
    assert "prose" in done.stderr, "a table for people"


def test_another_tokenizer_is_one_line_and_status_2(data: str, tmp_path: Path) -> None:
    model = save(tmp_path / "model", name="other", sha256="0" * 64)
    done = run(f"--checkpoint={model}", f"--data={data}")
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert "tokenizer" in done.stderr
    assert "sha256" in done.stderr
