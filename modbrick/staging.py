"""Directories and files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import fcntl
import glob
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from modbrick.errors import InputError
from modbrick.paths import expanded

UNFINISHED = ".unfinished"
"""Ending of the names of what is being written."""


def require_new(target: Path) -> None:
    """Checks that a directory is absent or empty.

    Raises:
      InputError: it is neither, or on a remote store.
    """
    if re.match(r"[a-z][a-z0-9+.-]*:/", str(target)):  # a path has lost one of the slashes
        raise InputError(f"{target}: only local disks are written to; copy the result from there")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise InputError(f"{target} holds something already: name a new or empty directory")


@contextlib.contextmanager
def staging(target: Path) -> Iterator[Path]:
    """Yields a hidden sibling of `target` that takes its name at the end.

    If the body raises, the sibling is removed, and the target is as it was. One that a killed
    process left behind is removed by the next that writes the same target.

    Raises:
      InputError: the target holds something, or the directory above it cannot be written.
    """
    require_new(target)
    target = Path(os.path.abspath(expanded(target)))
    prefix, suffix = f".{target.name}.", UNFINISHED
    made_above = _make_above(target.parent)
    try:
        for left in target.parent.glob(f"{glob.escape(prefix)}*{suffix}"):
            _remove_if_left(left)
        path = target.parent / f"{prefix}{secrets.token_hex(4)}{suffix}"
        path.mkdir()
    except OSError as error:
        raise InputError(f"{target} cannot be written ({error.strerror})") from error
    held = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX)
        try:
            yield path
            _sync(path)
            path.rename(target)
            _sync(target.parent)
        except OSError as error:
            raise InputError(
                f"{target} could not be written ({error.strerror or error})"
            ) from error
    except BaseException:
        _remove(path)
        for directory in made_above:
            directory.rmdir()
        raise
    finally:
        os.close(held)


@contextlib.contextmanager
def staged_file(target: Path) -> Iterator[Path]:
    """Yields a hidden name beside `target`, of a file that takes the target's name at the end.

    If the body raises, what it wrote is removed.

    Raises:
      InputError: the target is there already, or cannot be written.
    """
    if target.exists():
        raise InputError(f"{target} is there already: name a new file")
    path = target.parent / f".{target.name}.{secrets.token_hex(4)}{UNFINISHED}"
    try:
        yield path
        path.rename(target)
        _sync(target.parent)
    except OSError as error:
        raise InputError(f"{target} cannot be written ({error.strerror or error})") from error
    finally:
        path.unlink(missing_ok=True)


def _make_above(directory: Path) -> list[Path]:
    """Makes the directories above; returns those that were not there, the deepest first."""
    missing = [path for path in (directory, *directory.parents) if not path.exists()]
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{directory} cannot be made ({error.strerror})") from error
    return missing


def _remove(path: Path) -> None:
    """Removes a directory; again, if threads that were interrupted finish a file in between."""
    for pause in (0.0, 0.1, 0.3, 1.0, 3.0):
        time.sleep(pause)
        if path.exists():
            shutil.rmtree(path, ignore_errors=True)
        elif pause:
            return


def _remove_if_left(path: Path) -> None:
    """Removes a sibling unless a living process holds it."""
    held = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return
    finally:
        os.close(held)
    shutil.rmtree(path)


def _sync(directory: Path) -> None:
    """Makes names in a directory and below it last."""
    held = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(held)
    finally:
        os.close(held)
