"""The script that measures the early exit writes what it measured, or says what is wrong."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tests import programs

ROOT = Path(__file__).parents[2]


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return programs.run([ROOT / "scripts" / "measure_early_exit.py", *arguments])


def test_times_random_data(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    done = _run("--lengths=300", "--tolerances=0.01", "--rounds=1", f"--json={path}")
    assert done.returncode == 0, done.stderr[-2000:]
    [random] = json.loads(path.read_text())["random"]
    assert random["length"] == 300
    for name in ("forward", "forward_and_backward"):
        assert random[name]["seconds"] > 0
        assert random[name]["speed_up"]["0.01"] > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--checkpoint=run",), "--checkpoint=DIR and --data=DIR"),
        (("--lengths=many",), "lists of numbers"),
    ],
)
def test_bad_input_is_one_line(tmp_path: Path, arguments: tuple[str], message: str) -> None:
    done = _run(*arguments, f"--json={tmp_path / 'x'}")
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
