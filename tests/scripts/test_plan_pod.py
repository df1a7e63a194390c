from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests import programs

ROOT = Path(__file__).resolve().parents[2]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return programs.run([ROOT / "scripts/plan_pod.py", *arguments])


QUICKSTART = "--config=configs/quickstart.py"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([QUICKSTART, "--topology=v5e:2x2", "--json=nowhere/plan.json"], "no directory nowhere"),
        ([QUICKSTART, "--topology=v7:4x4"], "known are v5e, v5p, v6e, written"),
        (
            [QUICKSTART, "--topology=v5e:2x2", "--config.mesh.fsdp=3"],
            "mesh of data 1 x fsdp 3 is 3 devices, but there are 4|fsdp 3",
        ),
    ],
)
def test_bad_input_is_one_line_and_status_2(arguments, says):
    result = run(*arguments)
    assert result.returncode == 2, result.stderr
    [line] = result.stderr.strip().splitlines()
    assert any(part in line for part in says.split("|")), line


@pytest.mark.verify
def test_prints_a_plan_and_writes_it(tmp_path):
    file = tmp_path / "plan.json"
    # Kernels of these sizes have no rates: a small run is XLA's.
    xla = [f"--config.execution.{what}=xla" for what in ("attention", "dispatch")]
    result = run(QUICKSTART, *xla, "--topology=v5p:2x2x1", f"--json={file}")
    assert result.returncode == 0, result.stderr
    for part in ("HBM of one device", "Collectives of one step", "bound by", "utilisation"):
        assert part in result.stdout
    assert file.exists()
