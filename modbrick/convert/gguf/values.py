"""Metadata of GGUF files (github.com/ggml-org/ggml, docs/gguf.md): typed values, read strictly.

Lengths and counts are untrusted: each is compared with the bytes that remain before anything of
such a size is made. Arrays stay in the file: numbers are views of it, strings are decoded one by
one when they are asked for.
"""

from __future__ import annotations

import array
import reprlib
import struct
from collections.abc import Mapping, Sequence, Sized
from typing import Any, overload

import numpy as np

from modbrick.errors import InputError

LARGEST_HEADER = 1 << 26
"""Bytes; a vocabulary of 256,000 tokens with its merges and scores has some 15 MiB."""

LONGEST_KEY = (1 << 16) - 1
"""Bytes, as the format has it."""

DEEPEST_ARRAY = 4
MOST_INNER_ARRAYS = 1 << 14
"""Of one file; the format has arrays of arrays, and no known writer makes them."""

NUMBERS: Mapping[int, np.dtype] = {
    0: np.dtype("u1"),
    1: np.dtype("i1"),
    2: np.dtype("<u2"),
    3: np.dtype("<i2"),
    4: np.dtype("<u4"),
    5: np.dtype("<i4"),
    6: np.dtype("<f4"),
    7: np.dtype("?"),
    10: np.dtype("<u8"),
    11: np.dtype("<i8"),
    12: np.dtype("<f8"),
}
"""Value types that are numbers, by their code in files."""

BOOL, STRING, ARRAY = 7, 8, 9

U32, U64 = struct.Struct("<I"), struct.Struct("<Q")


class StringArray(Sequence[str]):
    """Strings that stay in the file until they are asked for.

    Args:
      data: the file's bytes.
      bounds: where the string that has index i begins, after its length of 8 bytes, and where the
        last one ends and another 8 bytes, for all of them lie side by side.
      where: begins the message about bytes that are no UTF-8.
    """

    def __init__(self, data: np.ndarray, bounds: np.ndarray, where: str):
        self._data, self._bounds, self._where = data, bounds, where

    def __len__(self) -> int:
        return len(self._bounds) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> StringArray: ...
    def __getitem__(self, index: int | slice) -> str | StringArray:
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            if step != 1:
                raise ValueError(f"strings are sliced in steps of 1, not {step}")
            bounds = self._bounds[start : max(start, stop) + 1]
            return StringArray(self._data, bounds, self._where)
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        start, stop = int(self._bounds[index]), int(self._bounds[index + 1]) - 8
        return decoded(self._data[start:stop].tobytes(), f"{self._where}: string {index}")


Value = bool | int | float | str | np.ndarray | StringArray | tuple[Any, ...]
"""Of metadata: arrays of numbers are numpy arrays, arrays of arrays are tuples."""


class Cursor:
    """A place in a file's header, from which values are read one after another.

    Args:
      data: the file's bytes, as far as a header may reach.
      size: of the file.
      where: begins every message.
    """

    def __init__(self, data: np.ndarray, size: int, where: str):
        self.where = where
        self.position = 0
        self._data = data
        self._size = size
        self._end = len(data)
        self._header = memoryview(data)
        self._inner_arrays = 0

    def u32(self) -> int:
        """Reads an unsigned number of 4 bytes."""
        return int(U32.unpack_from(self._header, self._advance(4, "a number"))[0])

    def u64(self) -> int:
        """Reads an unsigned number of 8 bytes."""
        return int(U64.unpack_from(self._header, self._advance(8, "a number"))[0])

    def string(self, most: int, what: str) -> str:
        """Reads a string of at most `most` bytes; `what` names it in messages."""
        size = self.u64()
        if size > most:
            raise InputError(f"{self.where}: {what} of {size} bytes, at most {most} are read")
        start = self._advance(size, what)
        return decoded(self._header[start : start + size].tobytes(), f"{self.where}: {what}")

    def value(self, where: str) -> Value:
        """Reads a value after its type; `where` names it in messages."""
        return self._value(self.u32(), where, 0)

    def require_room(self, count: int, size: int, what: str) -> None:
        """Raises `InputError` unless `count` things of at least `size` bytes each can follow."""
        if count > (self._end - self.position) // size:
            raise InputError(
                f"{self.where}: {what} claims {count} values of at least {size} bytes, and "
                f"{self._end - self.position} bytes of header are left"
            )

    def _value(self, kind: int, where: str, depth: int) -> Value:
        if kind in NUMBERS:
            dtype = NUMBERS[kind]
            value = self._numbers(dtype, 1, where)[0].item()
            return value
        if kind == STRING:
            return self.string(LARGEST_HEADER, where)
        if kind == ARRAY:
            return self._array(where, depth)
        raise InputError(f"{self.where}: {where} has the unknown value type {kind}")

    def _array(self, where: str, depth: int) -> Value:
        kind, count = self.u32(), self.u64()
        if kind in NUMBERS:
            return self._numbers(NUMBERS[kind], count, where)
        if kind == STRING:
            return self._strings(count, where)
        if kind != ARRAY:
            raise InputError(f"{self.where}: {where} is an array of the unknown value type {kind}")
        self._inner_arrays += count
        if depth + 1 >= DEEPEST_ARRAY or self._inner_arrays > MOST_INNER_ARRAYS:
            raise InputError(
                f"{self.where}: {where} nests arrays too deep or too often (at most "
                f"{DEEPEST_ARRAY} deep, {MOST_INNER_ARRAYS} in a file)"
            )
        self.require_room(count, 12, where)
        return tuple(self._array(where, depth + 1) for _ in range(count))

    def _numbers(self, dtype: np.dtype, count: int, where: str) -> np.ndarray:
        self.require_room(count, dtype.itemsize, where)
        start = self._advance(count * dtype.itemsize, where)
        stored = self._data[start : self.position]
        if dtype == np.bool_ and (stored > 1).any():
            raise InputError(f"{self.where}: {where} is a truth value of neither 0 nor 1")
        return stored.view(dtype)

    def _strings(self, count: int, where: str) -> StringArray:
        self.require_room(count, 8, where)
        header, end, position = self._header, self._end, self.position
        bounds = array.array("q")
        for _ in range(count):
            if position + 8 > end:
                raise self._short(where)
            bounds.append(position + 8)
            position += 8 + U64.unpack_from(header, position)[0]
        if position > end:
            raise self._short(where)
        self.position = position
        bounds.append(position + 8)
        return StringArray(self._data, np.asarray(bounds, np.int64), f"{self.where}: {where}")

    def _advance(self, size: int, what: str) -> int:
        """Returns the position, and moves it on, if as many bytes are there."""
        start = self.position
        if size > self._end - start:
            raise self._short(what)
        self.position = start + size
        return start

    def _short(self, what: str) -> InputError:
        if self._end < self._size:
            return InputError(f"{self.where}: {what} lies beyond {self._end} bytes of header")
        return InputError(f"{self.where}: truncated, or lengths that lie ({what} is cut off)")


def decoded(text: bytes, where: str) -> str:
    """Returns UTF-8 text, or raises `InputError` about it."""
    try:
        return text.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{where} is not UTF-8 ({error.reason} at {error.start})") from None


def shown(value: object) -> str:
    """Returns a value for a message, on one line and not long."""
    if isinstance(value, str | bool | int | float | None):
        return reprlib.repr(value)
    return f"an array of {len(value)} values" if isinstance(value, Sized) else type(value).__name__
