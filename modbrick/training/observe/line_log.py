"""JSON lines that a run appends to, on a file system or on a remote store."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any, TextIO

from etils import epath

from modbrick.checkpoints.directory import is_local, write_text

PART = 1 << 18
"""Characters after which a remote log goes on in another object."""

Record = dict[str, Any]


class LineLog:
    """Appends records to a file; each can be read at once, and a kill leaves those before it whole.

    Objects of a remote store cannot be appended to. There a log goes on in numbered parts beside
    the file (`metrics.jsonl.000001`, ...): the last part is written anew with each record, until it
    is `PART` characters long. `read_log` joins them.

    Args:
      path: of the file.
      keep: which of the records already there to keep; a line cut off by a kill is dropped too.
    """

    def __init__(self, path: epath.Path, *, keep: Callable[[Record], bool] = lambda _: True):
        self._path = path
        _filter(path, keep)
        self._lines: list[str] = []
        self._file: TextIO | None = None
        if is_local(path):
            self._file = path.open("a")
        else:
            self._part = _next_part(path)

    def append(self, record: Record) -> None:
        """Writes one record; numbers that JSON has no word for become null."""
        line = json.dumps(_finite(record), allow_nan=False) + "\n"
        if self._file is not None:
            self._file.write(line)
            self._file.flush()
            return
        self._lines.append(line)
        self._part.write_text("".join(self._lines))
        if sum(map(len, self._lines)) >= PART:
            self._lines, self._part = [], _next_part(self._path)

    def close(self) -> None:
        """Closes the file."""
        if self._file is not None:
            self._file.close()


def read_log(path: epath.Path) -> list[Record]:
    """Returns the records of a log, in order; a line cut off by a kill is left out."""
    return [record for part in _parts(path) for record in _read(part)]


def _filter(path: epath.Path, keep: Callable[[Record], bool]) -> None:
    """Rewrites the parts that hold what is not to be kept, each as a whole or not at all."""
    for part in _parts(path):
        kept = "".join(json.dumps(r) + "\n" for r in _read(part) if keep(r))
        if kept != part.read_text():
            write_text(part, kept)


def _parts(path: epath.Path) -> list[epath.Path]:
    found = [path] if path.exists() else []
    if not is_local(path) and path.parent.exists():
        found += sorted(p for p in path.parent.iterdir() if _is_part(p.name, path.name))
    return found


def _is_part(name: str, log: str) -> bool:
    return name.startswith(f"{log}.") and name.removeprefix(f"{log}.").isdecimal()


def _next_part(path: epath.Path) -> epath.Path:
    numbers = [int(p.name.rpartition(".")[2]) for p in _parts(path) if p != path]
    return path.with_name(f"{path.name}.{max(numbers, default=0) + 1:06d}")


def _read(path: epath.Path) -> list[Record]:
    *lines, last = path.read_text().split("\n")
    del last  # empty, or cut off
    return [json.loads(line) for line in lines]


def _finite(value: Any) -> Any:
    """Puts None, which is JSON, for numbers that JSON has no word for."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
