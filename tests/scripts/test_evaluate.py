"""The script as a user runs it, on a model of random values."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
import subprocess
from pathlib import Path

import jax
import numpy as np
import pytest
import tokenizers

from modbrick.checkpoints import Metadata, save_model
from modbrick.config import (
    AttentionConfig,
    FeedForwardConfig,
    LayerConfig,
    ModelConfig,
    SegmentConfig,
)
from modbrick.convert import import_checkpoint, open_checkpoint
from modbrick.data import ByteTokenizer
from modbrick.data.preparation.inputs import Input
from modbrick.data.preparation.preparation import PreparationConfig, prepare
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
        functional_decoder(CONFIG).table.abstract(),
    )
    tokenizer = dataclasses.asdict(ByteTokenizer().identity) | changes
    save_model(directory, parameters, Metadata(CONFIG, tokenizer=tokenizer), step=9)
    return str(directory)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    line = [ROOT / "scripts" / "evaluate.py", *arguments]
    return programs.run(line, environment=programs.QUICK)


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


def test_a_foreign_checkpoint_is_evaluated_where_it_lies(data: str, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(ROOT / "tests/fixtures/moduleformer/molm_like", source)
    (source / "tokenizer.json").write_text(ByteTokenizer().to_json())
    import_checkpoint(open_checkpoint(source), tmp_path / "imported")
    records = []
    for model in (source, tmp_path / "imported"):
        done = run(f"--checkpoint={model}", f"--data={data}", "--sequence_length=16")
        assert done.returncode == 0, done.stderr[-2000:]
        records.append(json.loads(done.stdout.splitlines()[-1]))
    assert [record.pop("step") for record in records] == [None, 0]
    assert records[0] == records[1]


def test_a_gguf_file_is_evaluated_with_the_tokenizer_beside_it(tmp_path: Path) -> None:
    model = shutil.copy(ROOT / "tests/fixtures/gguf/dense.gguf", tmp_path)
    words = {"to": 0, "be": 1, "or": 2, "not": 3, "</s>": 4}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="not"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["</s>"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    for name, text in (("train", "or not"), ("held_out", "to be or not to be")):
        (tmp_path / f"{name}.txt").write_text(text)
    texts = (
        Input(str(tmp_path / "train.txt"), split="train"),
        Input(str(tmp_path / "held_out.txt"), split="held_out"),
    )
    prepare(PreparationConfig(texts, str(tmp_path / "tokenizer.json"), str(tmp_path / "data")))
    done = run(f"--checkpoint={model}", f"--data={tmp_path / 'data'}", "--sequence_length=8")
    assert done.returncode == 0, done.stderr[-2000:]
    record = json.loads(done.stdout.splitlines()[-1])
    assert (record["tokens"], record["step"]) == (6, None)  # the first is context, and one the end
    assert 0 < record["loss"] < 10


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data={data}"], "name a model and data of its tokenizer: --checkpoint=DIR --data=DIR"),
        (["--checkpoint={gguf}"], "name a model and data of its tokenizer: --checkpoint=DIR"),
        (["--checkpoint={gguf}", "--data={data}"], "beyond the model's vocabulary of 50"),
        (["--checkpoint={gguf}", "--data={data}", "--step=1"], "without steps"),
    ],
)
def test_what_is_lacking_is_one_line_and_status_2(
    data: str, arguments: list[str], message: str
) -> None:
    gguf = ROOT / "tests/fixtures/gguf/dense.gguf"
    done = run(*(argument.format(data=data, gguf=gguf) for argument in arguments))
    assert done.returncode == 2
    assert message in done.stderr.splitlines()[-1]
    said = [line for line in done.stderr.splitlines() if "no tokenizer" not in line]
    assert len(said) == 1, done.stderr
