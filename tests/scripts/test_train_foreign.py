"""A run starts from a foreign checkpoint, without a second copy of it."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np

from modbrick import load_parameters
from modbrick.convert import open_checkpoint
from tests import programs
from tests.configs.foreign import SOURCE

ROOT = Path(__file__).parents[2]


def test_training_goes_on_with_foreign_weights(tmp_path: Path) -> None:
    draw = random.Random(0)
    (tmp_path / "texts").mkdir()
    for number in range(30):
        text = " ".join(draw.choices(["a", "bc", "def"], k=40))
        (tmp_path / "texts" / f"{number}.txt").write_text(text)
    run(
        "prepare_data",
        f"--input={tmp_path / 'texts'}",
        f"--output={tmp_path / 'data'}",
        "--tokenizer=byte",
        "--held_out=0.3",
    )
    printed = run(
        "train",
        f"--config={ROOT / 'tests/configs/foreign.py'}",
        f"--config.data.path={tmp_path / 'data'}",
        f"--workdir={tmp_path / 'run'}",
    )
    assert f"starting from {SOURCE}, a checkpoint of the format moduleformer" in printed
    checkpoint = open_checkpoint(SOURCE)
    moved = {}
    for path, value in load_parameters(tmp_path / "run").items():
        before = checkpoint.read(path, dtype=np.float32)
        assert value.dtype == np.float32
        distance = np.linalg.norm(np.asarray(value) - before)
        assert distance <= 0.5 * np.linalg.norm(before) + 1, path
        moved[path] = np.asarray(value) != before
    # What is frozen is where it was, as a whole or as a part.
    assert not moved["embedding"].any()
    assert moved["head.weight"].any()
    experts = moved["segments.0.feed_forward.up.weight"]
    assert not experts[0, 1].any()
    assert experts[0].any()
    assert experts[1, 1].any()


def run(script: str, *arguments: str) -> str:
    done = programs.run([ROOT / f"scripts/{script}.py", *arguments], environment=programs.QUICK)
    assert done.returncode == 0, done.stderr
    return done.stdout
