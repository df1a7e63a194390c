"""Paths of data sets, as users give them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from modbrick.errors import InputError


def data_path(path: str) -> str:
    """Returns the path of a data set with `~` expanded.

    Raises:
      InputError: the name is not UTF-8, or holds a line break: ArrayRecord cannot open such files.
    """
    path = os.path.expanduser(path)
    whole = path if "://" in path else os.path.abspath(path)
    try:
        whole.encode("utf-8")
    except UnicodeEncodeError:
        raise InputError(
            f"{path}: the name is not UTF-8, and no data set can lie there; choose another"
        ) from None
    if "\n" in whole:
        raise InputError(
            f"{path!r}: the name holds a line break, where a data set cannot lie; choose another"
        )
    return path


@contextlib.contextmanager
def readable(path: str) -> Iterator[None]:
    """Says in one line what of a data set cannot be read.

    Raises:
      InputError: the body raised an error of the file system.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"{error.filename or path}: cannot be read ({reason})") from None
