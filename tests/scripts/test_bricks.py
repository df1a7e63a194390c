"""The script as a user runs it, on bricks of random values for a model of random values."""

from __future__ import annotations

import dataclasses
import json
import subprocess
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from modbrick.bricks import IA3, BrickConfig, LoRA, Modality, initial_bricks
from modbrick.checkpoints import BaseModel, Metadata, describe, save_model
from modbrick.config.families import dense
from modbrick.data import ByteTokenizer, DatasetWriter
from modbrick.decoder.functional import initial_parameters
from modbrick.library import Library, brick_of_run, read_brick, write_brick
from modbrick.models import open_model
from tests import programs

pytestmark = pytest.mark.usefixtures("quick_compilation")
ROOT = Path(__file__).resolve().parents[2]
MODEL = dense(
    vocabulary=257, width=8, layers=2, heads=1, feed_forward_width=8, dtype="float32", context=16
)
BRICKS = {
    "german": BrickConfig(("layer.*.attention.query",), LoRA(rank=2)),
    "gain": BrickConfig(("layer.1.attention.value",), IA3()),
}


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a model, another of the same shapes, and a run of bricks for the first."""
    folder, random = tmp_path_factory.mktemp("house"), np.random.default_rng(0)
    tokenizer = ByteTokenizer()
    about = Metadata(MODEL, tokenizer=dataclasses.asdict(tokenizer.identity))
    for seed, name in enumerate(("model", "other")):
        parameters = initial_parameters(MODEL, jax.random.key(seed))
        save_model(folder / name, parameters, about, tokenizer=tokenizer.to_json())
    initial = initial_bricks(MODEL, BRICKS, jax.random.key(0))
    values = {path: x + random.standard_normal(x.shape) for path, x in initial.items()}
    base = BaseModel(str(folder / "model"), open_model(folder / "model").fingerprint())
    of_bricks = dataclasses.replace(about, bricks=BRICKS, base=base)
    save_model(folder / "run", values, of_bricks, tokenizer=tokenizer.to_json())
    for name in BRICKS:
        write_brick(folder / f"{name}.brick", *brick_of_run(folder / "run", name))
    return folder


def script(name: str, cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    line = [ROOT / f"scripts/{name}.py", *arguments]
    return programs.run(line, cwd=cwd, environment=programs.QUICK)


def told(cwd: Path, *arguments: str) -> dict[str, Any]:
    done = script("bricks", cwd, *arguments, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_from_a_run_into_a_library(house: Path, tmp_path: Path) -> None:
    for name in ("run", "model", "gain.brick"):
        (tmp_path / name).symlink_to(house / name)
    saved = told(tmp_path, "save", "run", "de.brick", "--name=german", "--license=MIT", "--tags=a")
    assert (saved["name"], saved["licence"], saved["tags"]) == ("german", "MIT", ["a"])
    wanted, ours = read_brick(house / "german.brick")[0], read_brick(tmp_path / "de.brick")[0]
    for address, value in wanted.values.items():
        assert np.array_equal(ours.values[address], value)
    assert told(tmp_path, "list", "de.brick") == saved
    assert told(tmp_path, "check", "de.brick", "model")["fits"]
    told(tmp_path, "add", "lib", "de.brick", "--tags=lang:de")
    told(tmp_path, "add", "lib", "gain.brick")
    assert [entry["name"] for entry in told(tmp_path, "list", "lib")["bricks"]] == [
        "gain",
        "german",
    ]
    for flag in ("--tag=lang:de", "--like=German"):
        (entry,) = told(tmp_path, "find", "lib", flag)["bricks"]
        assert (entry["name"], entry["tags"]) == ("german", ["a", "lang:de"])
    assert told(tmp_path, "rename", "lib", "german", "deutsch")["name"] == "deutsch"
    assert [entry["name"] for entry in told(tmp_path, "remove", "lib", "gain")["bricks"]] == [
        "deutsch"
    ]
    assert list(Library.open(tmp_path / "lib")) == ["deutsch"]
    model = told(tmp_path, "list", "run")
    assert list(model["customized"]) == ["german", "gain"]
    assert {"pattern": "embedding", "bricks": 1, "active": 1, "parameters": 2056} in model[
        "emergent"
    ]


def test_tables_for_people(house: Path) -> None:
    done = script("bricks", house, "list", "run")
    assert done.returncode == 0, done.stderr
    assert "customized bricks" in done.stdout


def test_what_does_not_fit_is_listed(house: Path) -> None:
    done = script("bricks", house, "check", "german.brick", "other", "--json")
    assert done.returncode == 2
    record = json.loads(done.stdout)
    assert not record["fits"]
    (remark,) = record["mismatches"]
    assert "other weights than those of other, step 0" in remark
    assert done.stderr == "error: german.brick does not fit other, step 0: 1 mismatch\n"
    assert told(house, "check", "german.brick", "other", "--allow_base=any")["fits"]


def test_a_model_is_run_with_bricks(house: Path, tmp_path: Path) -> None:
    tokenizer = ByteTokenizer()
    with DatasetWriter(str(house / "data")) as writer:
        writer.set_tokenizer(tokenizer)
        text = "the quick brown fox"
        for split in ("train", "held_out"):
            writer.add(split, "text", np.asarray(tokenizer.encode(text), np.int32), len(text), 1)
        writer.commit(sources={}, source_lines="", arguments={})
    both = "--bricks=german.brick,gain.brick"

    def loss(*arguments: str) -> float:
        done = script("evaluate", house, "--data=data", *arguments)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])["loss"]

    assert loss("--checkpoint=model", both) == loss("--checkpoint=run")

    def scores(*arguments: str) -> list[float]:
        flags = ("--prompt=the", "--max_new_tokens=2", "--greedy", "--json")
        done = script("generate", house, *flags, *arguments)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])["sequences"][0]["log_probabilities"]

    assert scores("--checkpoint=model", both) == scores("--checkpoint=run")
    for name in ("evaluate", "generate"):
        flags = ["--prompt=x"] if name == "generate" else ["--data=data"]
        done = script(name, house, "--checkpoint=other", both, *flags)
        assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
        assert "german.brick does not fit other, step 0: it was trained on other" in done.stderr
    eyes = {"eye": BrickConfig(("features",), Modality(1, width=3, features="image"))}
    about = describe(house / "run").metadata
    values = initial_bricks(MODEL, eyes, jax.random.key(0))
    save_model(tmp_path / "run", values, dataclasses.replace(about, bricks=eyes))
    write_brick(tmp_path / "eye.brick", *brick_of_run(tmp_path / "run", "eye"))
    for name in ("evaluate", "generate"):
        flags = ["--prompt=x"] if name == "generate" else ["--data=data"]
        brick = f"--bricks={tmp_path / 'eye.brick'}"
        done = script(name, house, "--checkpoint=model", brick, *flags)
        assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)
        assert "bricks.eye takes features ('image'), which texts do not have" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "expected: bricks.py save|list|check|add|find|remove|rename"),
        (["save", "run"], "expected: bricks.py save RUN FILE [--name=NAME"),
        (["find", "lib", "--tags=a"], "--tags means nothing here; expected: bricks.py find LIB"),
        (["save", "run", "new.brick"], "several bricks: choose with --name=german|gain"),
        (["save", "model", "new.brick"], "model holds no bricks, but a model"),
        (["save", "run", "gain.brick", "--name=gain"], "gain.brick is there already"),
        (["save", "run", "new.brick", "--name=germn"], "did you mean 'german'?"),
        (["list", "nowhere"], "no checkpoint in "),
        (["check", "nowhere", "model"], "nowhere: cannot be read (No such file or directory)"),
        (["check", "german.brick", "run"], "run, step 0 holds bricks for a model: name the model"),
        (
            ["add", "run", "gain.brick"],
            "run is no library, it holds something else (checkpoints, tok",
        ),
        (["add", "nowhere", "de.brick"], "de.brick: cannot be read"),
        (["find", "nowhere"], "there is no library nowhere: adding a brick makes one"),
    ],
)
def test_bad_input_is_one_line(house: Path, arguments: list[str], message: str) -> None:
    before = sorted(path.name for path in house.iterdir())
    done = script("bricks", house, *arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert message in done.stderr
    assert sorted(path.name for path in house.iterdir()) == before


def test_a_brick_goes_into_the_weights_and_out_again(house: Path, tmp_path: Path) -> None:
    for name in ("model", "other", "german.brick"):
        (tmp_path / name).symlink_to(house / name)
    assert told(tmp_path, "fold", "model", "german.brick", "--output=new")["customized"] == {}
    refused = script("bricks", tmp_path, "fold", "other", "german.brick", "--output=of_other")
    assert refused.returncode == 2
    assert "trained on other weights" in refused.stderr
    told(tmp_path, "unfold", "new", "--output=old")
    old, model = open_model(tmp_path / "old"), open_model(tmp_path / "model")
    assert old.fingerprint() == model.fingerprint() != open_model(tmp_path / "new").fingerprint()
    assert script("bricks", tmp_path, "unfold", "old", "--output=older").returncode == 2
    assert not (tmp_path / "older").exists()
    assert not (tmp_path / "of_other").exists()
