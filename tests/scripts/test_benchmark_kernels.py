from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tests import programs

ROOT = Path(__file__).resolve().parents[2]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return programs.run([ROOT / "scripts/benchmark_kernels.py", *arguments])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--op=grouped_matmul", "--cases=s4096"], "--cases: unknown case 's4096'"),
        (["--op=grouped_matmul", "--json=nowhere/f.json"], "--json: there is no directory nowhere"),
    ],
)
def test_bad_input_gets_one_line_and_status_2(arguments: list[str], message: str) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_what_is_not_measured_says_so(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    done = run("--op=grouped_matmul", "--parts=gpu", f"--json={file}")
    assert done.returncode == 0, done.stderr
    results = json.loads(file.read_text())
    assert results["gpu"] == "not measured: no GPU at hand"
    assert results["tpu"] == results["numerics"] == "not measured"
    where = results["measured"]["gpu"]
    assert where["versions"]["jax"]
    assert where["device"] == "cpu"
    assert where["date"].startswith("20")
    assert where["commit"]


def test_a_file_of_something_else_is_kept(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    file.write_text("{}")
    done = run("--op=grouped_matmul", "--parts=gpu", f"--json={file}")
    assert done.returncode == 2
    assert "holds no results of grouped_matmul; name another file" in done.stderr
    assert file.read_text() == "{}"
