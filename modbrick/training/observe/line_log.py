"""JSON lines that a run appends to, on a file system or on a remote store."""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
from collections.abc import Callable
from typing import Any

from etils import epath

from modbrick.checkpoints.workdir.directory import is_local, write_text
from modbrick.errors import InputError
from modbrick.parallel.processes import say
from modbrick.schema import json_text
from modbrick.training.observe.outage import Outage

PART = 1 << 18
"""Characters after which a remote log goes on in another object."""

Record = dict[str, Any]


class LineLog:
    """Appends records to a file; each can be read at once, and a kill leaves those before it whole.

    A record that cannot be written is lost: that is said once, and later ones are tried again.

    Objects of a remote store cannot be appended to. There a log goes on in numbered parts beside
    the file (`metrics.jsonl.000001`, ...): the last part is written anew with each record, until it
    is `PART` characters long. `read_log` joins them.

    Args:
      path: of the file; `InputError` is raised if it cannot be written from the start.
      keep: which of the records already there to keep; a line cut off by a kill is dropped too.
      warn: is handed the line about records that are lost.
    """

    def __init__(
        self,
        path: epath.Path,
        *,
        keep: Callable[[Record], bool] = lambda _: True,
        warn: Callable[[str], None] = say,
    ):
        self._path = path
        self._outage = Outage(path, "and what it cannot take is lost", warn)
        self._lines: list[str] = []
        self._file: io.FileIO | None = None
        try:
            _filter(path, keep, warn)
            if is_local(path):
                self._file = _appending(path)
            else:
                self._part = _next_part(path)
        except OSError as error:
            raise InputError(f"{path} cannot be written ({error.strerror or error})") from error

    def append(self, record: Record) -> None:
        """Writes one record; numbers that JSON has no word for become null."""
        line = json_text(record) + "\n"
        with self._outage.survived():
            if self._file is None:
                self._append_to_part(line)
            else:
                self._append_to_file(line.encode())

    def _append_to_file(self, data: bytes) -> None:
        """Writes all of a line or, as far as the disk lets it, nothing."""
        assert self._file is not None
        if os.fstat(self._file.fileno()).st_nlink == 0:
            # Removed under its feet: with its directory, or by somebody who wants it to begin anew.
            self._file.close()
            self._file = _appending(self._path)
        size = os.fstat(self._file.fileno()).st_size
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[self._file.write(rest) or 0 :]
        except OSError:
            with contextlib.suppress(OSError):
                self._file.truncate(size)
            raise

    def _append_to_part(self, line: str) -> None:
        self._lines.append(line)
        self._part.write_text("".join(self._lines))
        if sum(map(len, self._lines)) >= PART:
            self._lines, self._part = [], _next_part(self._path)

    def close(self) -> None:
        """Closes the file."""
        if self._file is not None:
            self._file.close()


def _appending(path: epath.Path) -> io.FileIO:
    return open(path, "ab", buffering=0)


def warn_reader(text: str) -> None:
    """Says something about a log to whoever reads it, beside what is made of it."""
    print(text, file=sys.stderr)


def read_log(
    path: epath.Path,
    warn: Callable[[str], None] = warn_reader,
    whole: Callable[[Record], bool] = lambda _: True,
) -> list[Record]:
    """Returns the records of a log, in order.

    A line cut off by a kill is left out; so are damaged ones: no JSON, no object, or a `step` that
    is no number. NaN and infinity, which older logs may hold, are read.

    Args:
      path: of the log.
      warn: is handed a line about damaged ones.
      whole: says of a record whether it has what one of this log has; else it is damaged too.
    """
    return [record for part in _parts(path) for record in _read(part, warn, whole)]


def _filter(path: epath.Path, keep: Callable[[Record], bool], warn: Callable[[str], None]) -> None:
    """Rewrites the parts that hold what is not to be kept, each as a whole or not at all."""
    for part in _parts(path):
        kept = "".join(json_text(r) + "\n" for r in _read(part, warn) if keep(r))
        if kept.encode() != part.read_bytes():
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


def _read(
    path: epath.Path,
    warn: Callable[[str], None],
    whole: Callable[[Record], bool] = lambda _: True,
) -> list[Record]:
    *lines, last = path.read_bytes().split(b"\n")
    del last  # empty, or cut off
    read = [_record(line) for line in lines]
    found = [record if record is not None and whole(record) else None for record in read]
    records = [record for record in found if record is not None]
    if damaged := len(found) - len(records):
        lines_are = "line is" if damaged == 1 else "lines are"
        warn(f"{path}: {damaged} damaged {lines_are} left out, line {found.index(None) + 1} first")
    return records


def _record(line: bytes) -> Record | None:
    """Returns the record of a line; None: it is damaged."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):  # no JSON, or no UTF-8
        return None
    return record if isinstance(record, dict) and is_number(record.get("step", 0)) else None


def is_number(value: Any) -> bool:
    """Returns whether a value of a record is a number."""
    return isinstance(value, int | float) and not isinstance(value, bool)
