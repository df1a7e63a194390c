"""Tensors that lie in files: what is known of them before they are read."""

from __future__ import annotations

import dataclasses
import mmap
from collections.abc import Callable
from pathlib import Path

import numpy as np

from modbrick.errors import InputError


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """A tensor in a memory-mapped file; nothing of it is in memory until it is read.

    Attributes:
      shape: its sizes.
      dtype: of its values, in this machine's byte order.
      read: returns the values as a read-only array of that shape and dtype: a view of the file
        where the file's byte order allows it, so that slices of it read only what they cover.

    `read` raises `InputError` if the file turns out to be damaged there.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]


def map_file(path: Path) -> np.ndarray:
    """Returns the bytes of a file as a read-only array over its memory map.

    Raises:
      InputError: a file that is missing, empty, or cannot be read.
    """
    try:
        with path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:  # ValueError: an empty file cannot be mapped
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"{path}: cannot be read ({reason})") from None
    return np.frombuffer(mapped, np.uint8)
