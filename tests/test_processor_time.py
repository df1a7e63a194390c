"""Areas and bounds of the suite's processor time."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from tests import programs
from tests.processor_time import AREAS, STARTING, area, exceeded

RUN = "import sys, pytest; sys.exit(pytest.main(sys.argv[1:]))"


def test_a_file_belongs_to_the_longest_path() -> None:
    assert area("tests/scripts/test_train.py") == "tests/scripts"
    assert area("tests/modbrick/layers/test_router.py") == "tests/modbrick/layers"
    assert area("tests/modbrick/test_schema.py") == "tests/modbrick"
    assert area("tests/modbrick_more/test_x.py") == "tests"
    assert area(STARTING) == STARTING


def test_two_cores_take_less_than_twenty_minutes() -> None:
    assert sum(AREAS.values()) < 2 * 20


def test_files_and_areas_above_their_bounds_are_named() -> None:
    at_its_bound = {f"tests/scripts/test_{n}.py": 60.0 for n in range(int(AREAS["tests/scripts"]))}
    assert exceeded(Counter(at_its_bound), 1.0) == []
    more = Counter(at_its_bound | {"tests/scripts/test_more.py": 160.0})
    [area_line, file_line] = exceeded(more, 1.0)
    assert area_line.startswith("tests/scripts took ")
    assert file_line.startswith("tests/scripts/test_more.py took 2.67 ")
    assert exceeded(more, 2.0) == []


@pytest.mark.parametrize(("factor", "status"), [(None, 0), (1000.0, 0), (1e-6, 1)])
def test_a_run_fails_only_where_bounds_are_held(
    tmp_path: Path, factor: float | None, status: int
) -> None:
    (tmp_path / "conftest.py").write_text('pytest_plugins = ["tests.processor_time"]')
    (tmp_path / "test_it.py").write_text("def test_it(): sum(range(1_000_000))")
    record = tmp_path / "record"
    options = ["-p", "no:cacheprovider", f"--rootdir={tmp_path}", str(tmp_path)]
    options += [f"--record-processor-time={record}"]
    options += [] if factor is None else [f"--hold-bounds={factor}"]
    done = programs.run(["-c", RUN, *options], cwd=tmp_path)
    assert done.returncode == status, done.stdout
    assert "min  all" in done.stdout
    assert ("its bound is" in done.stdout) == (status == 1)
    assert "test_it" in record.read_text()
