from __future__ import annotations

from pathlib import Path

from tests import programs

ROOT = Path(__file__).resolve().parents[2]


def test_a_picture_that_cannot_be_written_is_refused_before_the_run_is_read(tmp_path: Path) -> None:
    flags = ("--workdir=nowhere", f"--json={tmp_path / 'it'}", f"--picture={tmp_path / 'it.foo'}")
    done = programs.run([ROOT / "scripts/report_goodput.py", *flags])
    assert done.returncode == 2
    [line] = done.stderr.splitlines()
    assert "--picture: the name must end in .png" in line
    assert list(tmp_path.iterdir()) == []
