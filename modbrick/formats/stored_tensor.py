"""Tensors that lie in files: what is known of them before they are read."""

from __future__ import annotations

import abc
import dataclasses
import math
import mmap
from collections.abc import Callable
from pathlib import Path
from typing import Self

import numpy as np
from etils import epath

from modbrick.errors import InputError
from modbrick.paths import expanded


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file; nothing of it is in memory until it is read, and nothing stays there.

    Attributes:
      shape: its sizes.
      dtype: of its values, in this machine's byte order.
      load: returns the values `[start:stop]` along the first axis, given both; a scalar is loaded
        with (0, 1). The array is read-only, of `dtype`, and of the tensor's shape but for the first
        axis. It raises `InputError` if the file turns out to be damaged there.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    load: Callable[[int, int], np.ndarray]

    @property
    def nbytes(self) -> int:
        """Bytes of the values."""
        return math.prod(self.shape) * self.dtype.itemsize

    def read(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Returns the values `[start:stop]` along the first axis; of a scalar, all.

        Raises:
          InputError: the file turns out to be damaged there.
        """
        if not self.shape:
            return self.load(0, 1)
        return self.load(start, self.shape[0] if stop is None else stop)


class StoredBytes(abc.ABC):
    """Bytes of a file, which can be divided and read as tensors."""

    @abc.abstractmethod
    def __len__(self) -> int: ...

    @abc.abstractmethod
    def _divided(self, start: int, stop: int) -> Self: ...

    def part(self, start: int, stop: int) -> Self:
        """Returns the bytes `[start:stop]` of these, which must have that many."""
        if not 0 <= start <= stop <= len(self):
            raise ValueError(f"[{start}:{stop}] is not within {len(self)} bytes")
        return self._divided(start, stop)

    @abc.abstractmethod
    def map(self) -> np.ndarray:
        """Returns a read-only array of the bytes.

        Raises:
          InputError: the file cannot be read, or has become shorter.
        """

    def values(self, dtype: np.dtype, shape: tuple[int, ...]) -> StoredTensor:
        """Returns the tensor whose values these bytes are, in C order.

        `shape` and `dtype` must have been checked to have this size.
        """
        size = math.prod(shape[1:]) * dtype.itemsize

        def load(start: int, stop: int) -> np.ndarray:
            rows = shape and (stop - start, *shape[1:])
            return self.part(start * size, stop * size).map().view(dtype).reshape(rows)

        return StoredTensor(shape, dtype, load)


@dataclasses.dataclass(frozen=True)
class FileBytes(StoredBytes):
    """The bytes `[start:stop]` of a file, mapped into memory for as long as an array of them lives.

    Mapped pages count as the process's memory until they are unmapped; one map of a whole file
    would in the end count as all of it.
    """

    path: Path
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    def _divided(self, start: int, stop: int) -> FileBytes:
        return FileBytes(self.path, self.start + start, self.start + stop)

    def map(self) -> np.ndarray:
        """Returns a read-only array of the bytes; errors as `StoredBytes.map`."""
        if not len(self):
            return np.frombuffer(b"", np.uint8)
        first = self.start - self.start % mmap.ALLOCATIONGRANULARITY
        try:
            with self.path.open("rb") as file:
                # Everything is going to be read: one call, not a fault for every page.
                mapped = mmap.mmap(
                    file.fileno(),
                    self.stop - first,
                    flags=mmap.MAP_SHARED | getattr(mmap, "MAP_POPULATE", 0),
                    prot=mmap.PROT_READ,
                    offset=first,
                )
        except (OSError, ValueError) as error:  # ValueError: beyond the end of the file
            raise _unreadable(self.path, error) from None
        return np.frombuffer(mapped, np.uint8, len(self), self.start - first)


@dataclasses.dataclass(frozen=True)
class HeldBytes(StoredBytes):
    """Bytes in memory, of a file on a remote store, which cannot be mapped."""

    content: memoryview

    def __len__(self) -> int:
        return len(self.content)

    def _divided(self, start: int, stop: int) -> HeldBytes:
        return HeldBytes(self.content[start:stop])

    def map(self) -> np.ndarray:
        """Returns a read-only array of the bytes."""
        return np.frombuffer(self.content, np.uint8)


def open_bytes(path: Path | epath.Path) -> StoredBytes:
    """Returns all bytes of a file; one on a remote store (`gs://`) is read as a whole.

    Raises:
      InputError: a file that is missing, no file, or cannot be read.
    """
    if "://" not in str(path):
        return open_file(Path(expanded(path)))
    try:
        return HeldBytes(memoryview(path.read_bytes()))
    except OSError as error:
        raise _unreadable(path, error) from None


def open_file(path: Path) -> FileBytes:
    """Returns all bytes of a file.

    Raises:
      InputError: a file that is missing, no file, or cannot be read.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
    except OSError as error:
        raise _unreadable(path, error) from None
    return FileBytes(path, 0, size)


def map_file(path: Path) -> np.ndarray:
    """Returns the bytes of a file as a read-only array over one memory map.

    Raises:
      InputError: a file that is missing, empty, or cannot be read.
    """
    data = open_file(path)
    if not len(data):
        raise InputError(f"{path}: cannot be read (the file is empty)")
    return data.map()


def _unreadable(path: Path | epath.Path, error: Exception) -> InputError:
    reason = getattr(error, "strerror", None) or str(error)
    return InputError(f"{path}: cannot be read ({reason})")
