"""Makes writing to a directory fail in a test, as disks do."""

from __future__ import annotations

import builtins
import contextlib
import errno
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

FAULTS = ("no space", "no permission", "read-only", "vanished")
_ERRORS = {"no permission": errno.EACCES, "read-only": errno.EROFS}


def within[T](seconds: float, function: Callable[[], T]) -> T:
    """Returns what a function returns or raises; fails if that takes longer."""
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(function())
        except BaseException as error:  # noqa: BLE001 - raised again below
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    assert not thread.is_alive(), f"it hangs: not done within {seconds} s"
    if errors:
        raise errors[0]
    return results[0]


@contextlib.contextmanager
def broken(directory: Path, fault: str) -> Iterator[None]:
    """Lets writing below a directory fail, as far as it goes through Python.

    Without space, files that are open already fail too: the kernel's `/dev/full` takes their place.
    Without permission or on a disk that became read-only, they do not.
    """
    if fault == "vanished":
        shutil.rmtree(directory)
        yield
        return
    if fault == "no space":
        _fill_open_files(directory)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(builtins, "open", _failing(builtins.open, directory, fault))
        patch.setattr("io.open", builtins.open)
        patch.setattr(os, "open", _failing(os.open, directory, fault))
        patch.setattr(os, "mkdir", _failing(os.mkdir, directory, fault, makes=True))
        yield


def _fill_open_files(directory: Path) -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            place = os.readlink(f"/proc/self/fd/{name}")
            if place.startswith(f"{directory}/") and not place.endswith("/.lock"):
                os.dup2(full, int(name))
    os.close(full)


def _failing(
    function: Callable[..., Any], directory: Path, fault: str, *, makes: bool = False
) -> Callable[..., Any]:
    """Returns a function that opens or makes something, which fails below a directory."""

    def failing(path: Any, *args: Any, **kwargs: Any) -> Any:
        inside = isinstance(path, str | os.PathLike) and os.fspath(path).startswith(str(directory))
        flags = next(iter(args), kwargs.get("mode", "r"))
        if isinstance(flags, str):
            writes = not set(flags) <= set("rbt")
        else:
            writes = makes or bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
        if not inside or not writes:
            return function(path, *args, **kwargs)
        new = isinstance(flags, int) and bool(flags & os.O_EXCL)
        if fault == "no space" and not makes and not new:
            return function("/dev/full", *args, **kwargs)
        number = _ERRORS.get(fault, errno.ENOSPC)
        raise OSError(number, os.strerror(number), os.fspath(path))

    return failing
