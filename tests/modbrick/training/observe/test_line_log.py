"""Logs that are appended to: a record is there at once, on a file system and on a remote store."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from etils import epath

from modbrick.training.observe import line_log
from modbrick.training.observe.line_log import LineLog, read_log
from tests import remote_store


@pytest.fixture(params=["local", "remote"])
def path(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> epath.Path:
    directory = epath.Path(tmp_path)
    if request.param == "remote":
        directory = remote_store.install(monkeypatch)
        monkeypatch.setattr(line_log, "PART", 40)
    return directory / "log.jsonl"


def append(path: epath.Path, *records: line_log.Record) -> None:
    log = LineLog(path)
    for record in records:
        log.append(record)
    log.close()


def test_records_can_be_read_at_once_and_starts_go_on(path: epath.Path) -> None:
    expected: list[line_log.Record] = []
    assert read_log(path) == expected
    for start in range(3):
        log = LineLog(path)
        for number in range(12):
            expected.append({"start": start, "number": number})
            log.append(expected[-1])
            assert read_log(path) == expected
        log.close()


def test_only_what_is_to_be_kept_stays(path: epath.Path) -> None:
    append(path, *({"step": step} for step in range(20)))
    LineLog(path, keep=lambda record: record["step"] <= 7).close()
    assert [record["step"] for record in read_log(path)] == list(range(8))
    append(path, {"step": 8})
    assert [record["step"] for record in read_log(path)] == list(range(9))


def test_a_line_cut_off_by_a_kill_does_not_spoil_the_next(path: epath.Path) -> None:
    append(path, {"step": 1}, {"step": 2})
    files = sorted(path.parent.iterdir())
    files[-1].write_text(files[-1].read_text()[:-4])
    append(path, {"step": 3})
    assert read_log(path) == [{"step": 1}, {"step": 3}]


def test_remote_objects_stay_small(monkeypatch: pytest.MonkeyPatch) -> None:
    path = remote_store.install(monkeypatch) / "log.jsonl"
    monkeypatch.setattr(line_log, "PART", 1000)
    append(path, *({"number": number} for number in range(500)))
    sizes = [file.stat().length for file in path.parent.iterdir()]
    assert len(sizes) > 5
    assert max(sizes) < 1100
    assert [record["number"] for record in read_log(path)] == list(range(500))


def test_what_json_cannot_say_becomes_null(path: epath.Path) -> None:
    append(path, {"a": math.nan, "b": [math.inf, 1.5], "c": {"d": -math.inf}})
    (file,) = path.parent.iterdir()
    assert json.loads(file.read_text()) == {"a": None, "b": [None, 1.5], "c": {"d": None}}
