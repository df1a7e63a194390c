"""Paths as users write them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from modbrick.paths import as_path, expanded


def test_a_home_directory_is_replaced(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert expanded("~/run [1]") == f"{tmp_path}/run [1]"
    assert expanded(Path("~") / "run") == f"{tmp_path}/run"
    assert expanded("~nobody-of-this-name/run") == "~nobody-of-this-name/run"
    assert expanded("a/~") == "a/~"
    assert expanded("gs://bucket/~") == "gs://bucket/~"
    assert os.fspath(as_path("~/run")) == f"{tmp_path}/run"
    assert os.fspath(as_path("run\\x")) == f"{tmp_path}/run\\x"
    assert os.fspath(as_path("gs://bucket/run")) == "gs://bucket/run"
