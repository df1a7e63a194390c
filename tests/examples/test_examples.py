"""The examples run, on a model of random weights and a few of their data."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import pytest

from modbrick.checkpoints import Metadata, save_model
from modbrick.config.families import dense
from modbrick.data import ByteTokenizer
from modbrick.decoder.functional import initial_parameters
from tests import programs

ROOT = Path(__file__).resolve().parents[2]
MODEL = dense(vocabulary=257, width=16, layers=1, heads=2, feed_forward_width=16, dtype="float32")
IMAGES = """
import types
import numpy as np
def load_digits():
    random = np.random.default_rng(0)
    images, target = random.uniform(0, 16, (20, 8, 8)), random.integers(0, 10, 20)
    return types.SimpleNamespace(images=images, target=target)
"""
# As WordNet's data.noun has them.
NOUNS = """\
  1 a licence
00000001 03 n 01 entity 0 000 | what is
00000010 05 n 01 beast 0 001 @ 00000001 n 0000 | an animal
00000020 20 n 02 herb 0 weed 0 001 @ 00000001 n 0000 | a plant
"""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    tokenizer = ByteTokenizer()
    about = Metadata(MODEL, tokenizer=dataclasses.asdict(tokenizer.identity))
    parameters = initial_parameters(MODEL, jax.random.key(0))
    save_model(tmp_path / "model", parameters, about, tokenizer=tokenizer.to_json())
    return tmp_path / "model"


def result_of(example: str, cwd: Path, *arguments: str, packages: str = "") -> dict[str, Any]:
    common = ["--model=model", "--workdir=runs", "--steps=2", "--batch_size=4", "--json=out.json"]
    program = f"import sys, runpy; sys.path[:0] = {packages.split()!r}; sys.argv[0] = sys.argv[1]; "
    program += "del sys.argv[1]; runpy.run_path(sys.argv[0], run_name='__main__')"
    script = ROOT / f"examples/{example}.py"
    line = ["-c", program, script, *common, *arguments]
    done = programs.run(line, cwd=cwd, environment=programs.QUICK)
    assert done.returncode == 0, done.stderr
    result = json.loads((cwd / "out.json").read_text())
    assert {name: set(x) for name, x in result["held_out"].items()} == {
        "brick": {"loss", "accuracy"},
        "control": {"loss", "accuracy"},
    }
    return result


def test_digits(model: Path, tmp_path: Path) -> None:
    package = tmp_path / "stands_in" / "sklearn"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "datasets.py").write_text(IMAGES)
    result = result_of("digits", tmp_path, packages=str(package.parent))
    assert result["examples"] == {"trained": 16, "held_out": 4}
    assert result["brick"]["settings"]["kind"] == "modality"


def test_wordnet(model: Path, tmp_path: Path) -> None:
    lines = [NOUNS]
    for field, above in (("05", "00000010"), ("20", "00000020")):
        for number in range(5):
            offset = f"000{field}1{number:02d}"
            lines.append(f"{offset} {field} n 01 name{field}x{number} 0 001 @ {above} n 0000 | x\n")
    (tmp_path / "data.noun").write_text("".join(lines))
    result = result_of("wordnet", tmp_path, "--wordnet=.", "--per_field=5")
    assert result["brick"]["settings"]["kind"] == "knowledge"
    # The two nouns above the others are of these fields, too.
    assert result["examples"] == {"trained": 8, "held_out": 2}
