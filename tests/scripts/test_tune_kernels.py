from __future__ import annotations

from pathlib import Path

import pytest

from tests import programs

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--kernel=attention", "--generation=v99"], "--generation: unknown value 'v99'"),
        (["--kernel=attention", "--case=molm"], "--case: unknown case 'molm'"),
    ],
)
def test_bad_input_gets_one_line_and_status_2(arguments: list[str], message: str) -> None:
    done = programs.run([ROOT / "scripts/tune_kernels.py", *arguments])
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
