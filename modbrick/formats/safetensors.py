"""Safetensors files (github.com/huggingface/safetensors, section Format), read strictly.

Eight bytes give the size of a JSON header, which gives each tensor's dtype, shape and place in the
bytes that follow. Headers are untrusted: everything they claim is checked before anything is
allocated.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from modbrick.errors import InputError
from modbrick.formats.stored_tensor import FileBytes, StoredTensor, open_file
from modbrick.formats.strict_json import parse_object

LARGEST_HEADER = 100_000_000
"""Bytes, as in the reference implementation."""

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


def read_safetensors(path: Path) -> dict[str, StoredTensor]:
    """Returns the tensors of a safetensors file by name, none of them read yet.

    Raises:
      InputError: a file that is no safetensors file, truncated, or whose header contradicts itself
        or the file's size, or names a dtype that is not in `DTYPES`.
    """
    header, body = _header(open_file(path), path)
    tensors, places = {}, []
    for name, entry in header.items():
        if name == "__metadata__":
            continue
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
    return tensors


def _header(data: FileBytes, path: Path) -> tuple[dict[str, Any], FileBytes]:
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
