"""Sizes in bytes at the terminal: what a user writes, and a bar of how much is done."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from modbrick.errors import InputError

_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def byte_size(text: str, flag: str) -> int:
    """Returns the bytes of a size such as 500MB or 2GiB.

    Raises:
      InputError: it is none; the message begins with `flag`.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]I?B|)", text.strip().upper())
    if match is None:
        raise InputError(f"{flag}={text}: expected a size such as 500MB or 2GiB")
    return int(float(match[1]) * _UNITS[match[2]])


@contextmanager
def byte_progress(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Shows a bar in bytes on a terminal, on standard error; yields what advances it."""
    bar = Progress(
        TextColumn(what),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )
    bar.disable = not bar.console.is_terminal
    with bar:
        task = bar.add_task(what, total=total)
        yield lambda done: bar.advance(task, done)
