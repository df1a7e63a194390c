"""A directory appears whole, or nothing changes."""

from __future__ import annotations

from pathlib import Path

import pytest

from modbrick.errors import InputError
from modbrick.staging import staged_file, staging


def test_everything_appears_at_the_end(tmp_path: Path) -> None:
    target = tmp_path / "a" / "b" / "out"
    with staging(target) as directory:
        (directory / "file").write_text("x")
        assert not target.exists()
    assert (target / "file").read_text() == "x"
    assert [path.name for path in target.parent.iterdir()] == ["out"]


def test_an_empty_target_may_exist(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with staging(tmp_path / "out") as directory:
        (directory / "file").touch()
    assert (tmp_path / "out" / "file").exists()


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("there", [True, False])
def test_nothing_changes_on_the_way_out(tmp_path: Path, error: type, there: bool) -> None:
    above = tmp_path / "above"
    if there:
        (above / "out").mkdir(parents=True)

    def fail() -> None:
        with staging(above / "out") as directory:
            (directory / "file").touch()
            raise error

    with pytest.raises(error):
        fail()
    assert sorted(path.name for path in tmp_path.rglob("*")) == (["above", "out"] if there else [])


def test_what_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / ".hidden").touch()
    for target in (tmp_path / "file", tmp_path / "full"):
        with pytest.raises(InputError, match="holds something already"), staging(target):
            pass
    with pytest.raises(InputError, match="cannot be made"), staging(tmp_path / "file" / "out"):
        pass


def test_what_a_killed_process_left_is_removed_and_what_a_living_one_writes_is_not(
    tmp_path: Path,
) -> None:
    left = tmp_path / ".out.1234abcd.unfinished"
    other = tmp_path / ".other.1234abcd.unfinished"
    left.mkdir()
    other.mkdir()
    (left / "file").touch()
    with staging(tmp_path / "out") as living:
        assert not left.exists()
        with staging(tmp_path / "out"):  # locks tell them apart within one process, too
            assert living.exists()
        (tmp_path / "out").rmdir()
    assert other.exists()


def test_a_file_appears_at_the_end(tmp_path: Path) -> None:
    target = tmp_path / "out"
    with staged_file(target) as path:
        path.write_text("x")
        assert not target.exists()
    assert target.read_text() == "x"
    with pytest.raises(InputError, match="out is there already"), staged_file(target):
        raise AssertionError("not reached")
    for name, error in (("other", RuntimeError), ("nowhere/out", InputError)):

        def fail(name: str = name) -> None:
            with staged_file(tmp_path / name) as path:
                path.touch()
                raise RuntimeError

        with pytest.raises(error):
            fail()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("name", ["gs://bucket/model", "s3://bucket"])
def test_a_remote_store_is_refused_as_such(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="only local disks are written to"), staging(Path(name)):
        raise AssertionError("never entered")
    assert not list(tmp_path.iterdir())
