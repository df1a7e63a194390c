"""The benchmark of plugging in one brick of many, on a model that takes no time."""

from __future__ import annotations

from pathlib import Path

import pytest

from modbrick.training.benchmark.cases import Case
from modbrick.training.benchmark.library import OpenedFiles, plugging_cost

pytestmark = pytest.mark.usefixtures("quick_compilation")
TINY = Case(32, 16, 1, 2, 16, 16, 8, 2, 2, batch=2, sequence=8)


def test_the_files_that_are_opened_are_counted(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    for directory in (here, there):
        directory.mkdir()
        (directory / "file").write_bytes(b"12345")
    opened = OpenedFiles(here)
    (here / "other").write_bytes(b"123")
    with opened:
        for _ in range(2):
            (here / "file").read_bytes()
        (there / "file").read_bytes()
    (here / "other").read_bytes()
    assert opened.files == {here / "file"}
    assert opened.total == 5


def test_one_brick_of_many_is_read_alone() -> None:
    found = plugging_cost(TINY, bricks=5, rounds=1)
    assert found["read_bytes"] == found["file_bytes"]
    assert found["library_bytes"] == 5 * found["file_bytes"]
    assert found["time_ratio"] > 0
