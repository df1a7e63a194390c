"""GGUF files (github.com/ggml-org/ggml, docs/gguf.md), read strictly.

A header of metadata and of tensor descriptions, then the tensors side by side, each from a multiple
of the alignment on. Sizes stand in files with the last axis first; here they have numpy's order.
Headers are untrusted: everything they claim is checked before anything is allocated.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from modbrick.convert.gguf.encodings import Encoding, encoding
from modbrick.convert.gguf.values import LARGEST_HEADER, LONGEST_KEY, Cursor, Value, shown
from modbrick.errors import InputError
from modbrick.formats.stored_tensor import FileBytes, StoredTensor, open_file

MAGIC = b"GGUF"
VERSIONS = (2, 3)

LONGEST_NAME = 64
MOST_AXES = 4
MOST_TENSORS = 1 << 17
MOST_KEYS = 1 << 16
"""The first two are the format's own limits, the others far above any real file."""

ALIGNMENT = "general.alignment"
DEFAULT_ALIGNMENT = 32
LARGEST_ALIGNMENT = 1 << 16


@dataclasses.dataclass(frozen=True)
class GgufFile:
    """Contents of a GGUF file.

    Attributes:
      path: of the file.
      metadata: by key.
      tensors: by name, none of them read yet. Quantised ones become float32 as they are read.
      encodings: how each of them is stored.
    """

    path: Path
    metadata: Mapping[str, Value]
    tensors: Mapping[str, StoredTensor]
    encodings: Mapping[str, Encoding]


@dataclasses.dataclass(frozen=True)
class _Entry:
    """A tensor as the header describes it; `offset` counts from the first tensor's place."""

    name: str
    shape: tuple[int, ...]
    encoding: Encoding
    offset: int

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) // self.encoding.values * self.encoding.bytes


def is_gguf(path: str | Path) -> bool:
    """Returns whether a file begins as GGUF files do; False if there is no such file."""
    path = Path(path)
    if not path.is_file():
        return False
    try:
        with path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None


def read_gguf(path: str | Path) -> GgufFile:
    """Returns the metadata of a GGUF file and its tensors by name, none of them read yet.

    Versions 2 and 3 are read, in little-endian order.

    Raises:
      InputError: a file that is no GGUF file, of another version or byte order, one of several,
        truncated, whose header contradicts itself or the file's size, or with a tensor whose type
        is not in `ENCODINGS`.
    """
    path = Path(path)
    data = open_file(path)
    header = data.part(0, min(len(data), LARGEST_HEADER)).map()
    cursor = Cursor(header, len(data), str(path))
    _check_version(header, path, cursor)
    count, keys = cursor.u64(), cursor.u64()
    for claimed, most, what in ((count, MOST_TENSORS, "tensors"), (keys, MOST_KEYS, "keys")):
        if claimed > most:
            raise InputError(f"{path}: claims {claimed} {what}, at most {most} are read")
    cursor.require_room(keys, 13, "the number of keys")
    metadata = _metadata(cursor, keys)
    cursor.require_room(count, 24, "the number of tensors")
    entries = _entries(cursor, count)
    alignment = _alignment(metadata, path)
    start = -(-cursor.position // alignment) * alignment
    _check_offsets(entries, len(data) - start, alignment, path)
    tensors = {entry.name: _tensor(entry, data, start) for entry in entries}
    return GgufFile(path, metadata, tensors, {entry.name: entry.encoding for entry in entries})


def _check_version(header: np.ndarray, path: Path, cursor: Cursor) -> None:
    if header[:4].tobytes() != MAGIC:
        raise InputError(f"{path}: not a GGUF file (it does not begin with {MAGIC.decode()})")
    cursor.u32()
    version = cursor.u32()
    if version not in VERSIONS and version & 0xFFFF == 0:
        raise InputError(f"{path}: a big-endian GGUF file, which is not read: convert it first")
    if version not in VERSIONS:
        known = " and ".join(map(str, VERSIONS))
        raise InputError(f"{path}: GGUF version {version} is not read, only {known}")


def _metadata(cursor: Cursor, count: int) -> dict[str, Value]:
    metadata: dict[str, Value] = {}
    for _ in range(count):
        key = cursor.string(LONGEST_KEY, "a key")
        if not key or key in metadata:
            problem = "stands there twice" if key else "is empty"
            raise InputError(f"{cursor.where}: the key {key!r} {problem}")
        metadata[key] = cursor.value(f"the value of {key!r}")
    parts = metadata.get("split.count", 0)
    if type(parts) is not int or parts > 1:
        raise InputError(
            f"{cursor.where}: split.count is {shown(parts)}, so it is one of several files, which "
            "are not read: merge them first"
        )
    return metadata


def _entries(cursor: Cursor, count: int) -> list[_Entry]:
    entries: dict[str, _Entry] = {}
    for _ in range(count):
        name = cursor.string(LONGEST_NAME, "the name of a tensor")
        where = f"{cursor.where}: tensor {name!r}"
        if not name or name in entries:
            raise InputError(f"{where} {'stands there twice' if name else 'has no name'}")
        axes = cursor.u32()
        if axes > MOST_AXES:
            raise InputError(f"{where}: {axes} axes are too many, at most {MOST_AXES} are read")
        shape = tuple(reversed([cursor.u64() for _ in range(axes)]))
        kind = encoding(cursor.u32(), where)
        if math.prod(max(1, n) for n in shape) * kind.bytes > np.iinfo(np.intp).max:
            raise InputError(f"{where}: shape {list(shape)} is too large")
        if kind.values > 1 and (not shape or shape[-1] % kind.values):
            raise InputError(
                f"{where}: shape {list(shape)} does not divide into blocks of {kind.values} along "
                f"the last axis, as {kind.name} needs"
            )
        entries[name] = _Entry(name, shape, kind, cursor.u64())
    return list(entries.values())


def _alignment(metadata: Mapping[str, Value], path: Path) -> int:
    alignment = metadata.get(ALIGNMENT, DEFAULT_ALIGNMENT)
    powers = [1 << n for n in range(3, LARGEST_ALIGNMENT.bit_length())]
    if type(alignment) is not int or alignment not in powers:
        raise InputError(
            f"{path}: {ALIGNMENT} is {shown(alignment)}, expected a power of two from 8 to "
            f"{LARGEST_ALIGNMENT}"
        )
    return alignment


def _check_offsets(entries: list[_Entry], available: int, alignment: int, path: Path) -> None:
    """Refuses tensors that overlap, leave gaps, lie at odd places or beyond the file's end.

    What follows the last tensor may be padding, or missing padding, and nothing else.
    """
    position = 0
    for entry in sorted(entries, key=lambda e: (e.offset, e.bytes)):
        where = f"{path}: tensor {entry.name!r}"
        padded = -(-position // alignment) * alignment
        if entry.offset % alignment:
            raise InputError(f"{where} lies at {entry.offset}, no multiple of {alignment}")
        if entry.offset != padded:
            problem = "overlaps another tensor" if entry.offset < padded else "leaves a gap before"
            raise InputError(f"{where} {problem}")
        position = entry.offset + entry.bytes
        if position > available:
            raise InputError(
                f"{where}: truncated, or an offset that lies (it ends at {position}, and there are "
                f"{max(0, available)} bytes of tensors)"
            )
    if available - position >= alignment:
        raise InputError(f"{path}: {available - position} bytes belong to no tensor")


def _tensor(entry: _Entry, data: FileBytes, start: int) -> StoredTensor:
    stored = data.part(start + entry.offset, start + entry.offset + entry.bytes)
    shape, encoding = entry.shape, entry.encoding
    if encoding.decode is None:
        return stored.values(encoding.dtype, shape)
    across = len(shape) == 1  # blocks lie along the only axis, across its rows
    step = 0 if across else math.prod(shape[1:]) // encoding.values * encoding.bytes

    def load(first: int, last: int) -> np.ndarray:
        part = stored if across else stored.part(first * step, last * step)
        values = encoding.read(part.map())
        values = values[first:last] if across else values.reshape(last - first, *shape[1:])
        values.flags.writeable = False
        return values

    return StoredTensor(shape, encoding.dtype, load)
