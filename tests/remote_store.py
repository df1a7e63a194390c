"""Stands in for a bucket on `gs://`: objects in memory, behind the interface of the real ones."""

from __future__ import annotations

import sys
from typing import Any, ClassVar

import pytest
from etils import epath
from fsspec.implementations.memory import MemoryFileSystem  # type: ignore[import-untyped]


class Bucket(MemoryFileSystem):
    """Like Google Cloud Storage, it cannot append to an object, and has no empty directories."""

    protocol = ("gs", "gcs")
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return super()._strip_protocol(path.removeprefix("gs://"))

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        pass

    def mkdir(self, path: str, create_parents: bool = True, **kwargs: Any) -> None:
        pass

    def _open(self, path: str, mode: str = "rb", **kwargs: Any) -> Any:
        assert "a" not in mode
        return super()._open(path, mode, **kwargs)


def install(monkeypatch: pytest.MonkeyPatch) -> epath.Path:
    """Answers `gs://` from memory for the time of a test; returns an empty directory there."""
    registry = sys.modules["fsspec.registry"]  # as an attribute it is a view of what it holds
    monkeypatch.setitem(registry._registry, "gcs", Bucket)
    Bucket.store.clear()
    Bucket.pseudo_dirs[:] = [""]
    return epath.Path("gs://bucket/run")
