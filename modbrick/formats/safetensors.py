"""Safetensors files (github.com/huggingface/safetensors, section Format): strict reader, writer.

Eight bytes give the size of a JSON header, which gives each tensor's dtype, shape and place in the
bytes that follow, and may hold metadata: texts by name. Headers are untrusted: everything they
claim is checked before anything is allocated.

The `safetensors` package is not used here. Its reader takes headers that name a tensor twice and
maps the file as a whole, which counts as memory of the process; its writer wants all tensors in
memory. The tests show each.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import jax.numpy as jnp
import numpy as np
from etils import epath

from modbrick.errors import InputError
from modbrick.formats.stored_tensor import StoredBytes, StoredTensor, open_bytes
from modbrick.formats.strict_json import parse_object

LARGEST_HEADER = 100_000_000
"""Bytes, as in the reference implementation."""

METADATA = "__metadata__"
"""The key of the header that is no tensor."""

DTYPES = {
    "BOOL": np.dtype("?"),
    "U8": np.dtype("u1"),
    "I8": np.dtype("i1"),
    "U16": np.dtype("<u2"),
    "I16": np.dtype("<i2"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(jnp.bfloat16),
    "U32": np.dtype("<u4"),
    "I32": np.dtype("<i4"),
    "F32": np.dtype("<f4"),
    "U64": np.dtype("<u8"),
    "I64": np.dtype("<i8"),
    "F64": np.dtype("<f8"),
}

_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def read_safetensors(path: Path | epath.Path) -> dict[str, StoredTensor]:
    """Returns the tensors of a safetensors file by name, none of them read yet.

    Raises:
      InputError: as `read_with_metadata`.
    """
    return read_with_metadata(path)[0]


def read_with_metadata(
    path: Path | epath.Path,
) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    """Returns the tensors of a safetensors file by name, none of them read yet, and its metadata.

    A file on a remote store (`gs://`) is held in memory while one of them is.

    Raises:
      InputError: a file that is no safetensors file, truncated, or whose header contradicts itself
        or the file's size, or names a dtype that is not in `DTYPES`.
    """
    header, body = _header(open_bytes(path), path)
    metadata = header.pop(METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise InputError(f"{path}: {METADATA} must hold texts by name")
    tensors, places = {}, []
    for name, entry in header.items():
        where = f"{path}: tensor {name!r}"
        dtype, shape, start, end = _entry(entry, len(body), where)
        places.append((start, end, name))
        tensors[name] = body.part(start, end).values(dtype, shape)
    position = 0
    for start, end, name in sorted(places):
        if start != position:
            problem = "overlaps another tensor" if start < position else "leaves a gap before it"
            raise InputError(f"{path}: tensor {name!r} {problem}")
        position = end
    if position != len(body):
        raise InputError(f"{path}: {len(body) - position} bytes belong to no tensor")
    return tensors, metadata


@dataclasses.dataclass(frozen=True)
class TensorSpec:
    """Shape and dtype of a tensor to be written."""

    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def nbytes(self) -> int:
        """Bytes of the values."""
        return math.prod(self.shape) * self.dtype.itemsize


class SafetensorsWriter:
    """A safetensors file whose tensors are written one after the other, in pieces; use in `with`.

    It is on disk when the `with` ends. Left by an error, what is written so far stays: write under
    a temporary name.
    """

    def __init__(
        self, path: Path, tensors: Mapping[str, TensorSpec], metadata: Mapping[str, str] = {}
    ):
        """Writes the header.

        Args:
          path: of the file; it must not exist.
          tensors: by name, in the order in which they are going to be written.
          metadata: texts by name.

        Raises:
          OSError: the file cannot be written.
          ValueError: a name or dtype that the format does not have.
        """
        header: dict[str, object] = {METADATA: dict(metadata)} if metadata else {}
        position = 0
        for name, spec in tensors.items():
            if name == METADATA or spec.dtype not in _NAMES:
                raise ValueError(f"no safetensors file holds {name!r} of {spec.dtype}")
            header[name] = {
                "dtype": _NAMES[spec.dtype],
                "shape": list(spec.shape),
                "data_offsets": [position, position + spec.nbytes],
            }
            position += spec.nbytes
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)  # values begin at a multiple of eight bytes
        self._file = path.open("xb")
        self._file.write(len(text).to_bytes(8, "little") + text)
        self._left = position

    def write(self, values: np.ndarray) -> None:
        """Writes the next values, in C order.

        Raises:
          ValueError: more values than were announced.
        """
        content = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
        if len(content) > self._left:
            raise ValueError(f"{len(content)} bytes of tensors, but only {self._left} are left")
        self._left -= len(content)
        self._file.write(content.data)

    def __enter__(self) -> SafetensorsWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if error is None:
                if self._left:
                    raise ValueError(f"{self._left} bytes of tensors were announced, not written")
                self._file.flush()
                os.fsync(self._file.fileno())
        finally:
            self._file.close()


def _header(data: StoredBytes, path: Path | epath.Path) -> tuple[dict[str, Any], StoredBytes]:
    if len(data) < 8:
        raise InputError(f"{path}: {len(data)} bytes are no safetensors file")
    size = int.from_bytes(data.part(0, 8).map().tobytes(), "little")
    if size > LARGEST_HEADER or size > len(data) - 8:
        raise InputError(
            f"{path}: not a safetensors file, or truncated (a header of {size} bytes is claimed, "
            f"{len(data) - 8} bytes follow)"
        )
    text = data.part(8, 8 + size).map().tobytes()
    return parse_object(text, f"{path}: header"), data.part(8 + size, len(data))


def _entry(entry: Any, available: int, where: str) -> tuple[np.dtype, tuple[int, ...], int, int]:
    """Returns the checked dtype, shape, start and end of one header entry."""
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise InputError(f"{where}: expected exactly dtype, shape and data_offsets")
    if entry["dtype"] not in list(DTYPES):  # a list: the value may not be hashable
        raise InputError(f"{where}: dtype {entry['dtype']!r} is not one of {', '.join(DTYPES)}")
    dtype = DTYPES[entry["dtype"]]
    shape, offsets = _counts(entry["shape"], where), _counts(entry["data_offsets"], where)
    if len(offsets) != 2 or not offsets[0] <= offsets[1] <= available:
        raise InputError(f"{where}: data_offsets {list(offsets)} do not lie in {available} bytes")
    if len(shape) > 32:
        raise InputError(f"{where}: {len(shape)} axes are too many, at most 32 are read")
    size = math.prod(shape) * dtype.itemsize
    if size != offsets[1] - offsets[0]:
        raise InputError(
            f"{where}: shape {list(shape)} needs {size} bytes, "
            f"data_offsets cover {offsets[1] - offsets[0]}"
        )
    # numpy multiplies sizes before it looks for zeros among them.
    if math.prod(max(1, n) for n in shape) * dtype.itemsize > np.iinfo(np.intp).max:
        raise InputError(f"{where}: shape {list(shape)} is too large")
    return dtype, shape, offsets[0], offsets[1]


def _counts(values: Any, where: str) -> tuple[int, ...]:
    if not isinstance(values, list) or not all(type(v) is int and v >= 0 for v in values):
        raise InputError(f"{where}: shape and data_offsets must be lists of counts")
    return tuple(values)
