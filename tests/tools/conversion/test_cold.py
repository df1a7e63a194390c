"""Time and peak memory are those of the command."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from modbrick.errors import InputError
from tools.conversion.cold import timed


def test_time_and_peak_memory_are_those_of_the_command(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x" * 100)
    code = "import time; x = bytearray(200 << 20); time.sleep(0.3)"
    measured = timed([sys.executable, "-c", code], tmp_path)
    assert measured.seconds >= 0.3
    assert 200 << 20 <= measured.peak_bytes < 400 << 20
    with pytest.raises(InputError, match="ended with status 3"):
        timed([sys.executable, "-c", "raise SystemExit(3)"], tmp_path)
