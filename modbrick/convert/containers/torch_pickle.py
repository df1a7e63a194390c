"""PyTorch `.bin` files (zip archives, since PyTorch 1.6), read without PyTorch, running nothing.

The record `data.pkl` describes the tensors, `data/{key}` holds the values of a storage, `byteorder`
says in which order its bytes stand.
"""

from __future__ import annotations

import math
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from modbrick.convert.containers.torch_opcodes import TensorDescription, interpret
from modbrick.convert.containers.zip_records import ZipRecords
from modbrick.errors import InputError
from modbrick.formats.stored_tensor import StoredTensor

LARGEST_DESCRIPTION = 64 << 20
"""Bytes of `data.pkl`; each tensor takes some 200."""

DTYPES = {
    "torch.BFloat16Storage": np.dtype(jnp.bfloat16),
    "torch.HalfStorage": np.dtype("f2"),
    "torch.FloatStorage": np.dtype("f4"),
    "torch.DoubleStorage": np.dtype("f8"),
    "torch.BoolStorage": np.dtype("?"),
    "torch.ByteStorage": np.dtype("u1"),
    "torch.CharStorage": np.dtype("i1"),
    "torch.ShortStorage": np.dtype("i2"),
    "torch.IntStorage": np.dtype("i4"),
    "torch.LongStorage": np.dtype("i8"),
}


def read_torch_file(path: Path) -> dict[str, StoredTensor]:
    """Returns the tensors of a PyTorch state-dictionary file by name, none of them read yet.

    Raises:
      InputError: a file that is damaged, of the format before PyTorch 1.6, names anything but
        tensors, or describes tensors that do not lie within their storages.
    """
    records = ZipRecords(path)
    if "data.pkl" not in records:
        raise InputError(f"{path}: a zip archive, but not one of PyTorch (it has no data.pkl)")
    size = records.size("data.pkl")
    if size > LARGEST_DESCRIPTION:
        raise InputError(
            f"{path}: data.pkl has {size} bytes, at most {LARGEST_DESCRIPTION} are read"
        )
    order = _byte_order(records)
    code = records.read("data.pkl").map().tobytes()
    return {
        name: _tensor(records, description, order, f"{path}: tensor {name!r}")
        for name, description in interpret(code, f"{path}: data.pkl").items()
    }


def _byte_order(records: ZipRecords) -> str:
    """Returns numpy's sign for the byte order; files without the record are little-endian."""
    if "byteorder" not in records:
        return "<"
    size = records.size("byteorder")
    order = records.read("byteorder").map().tobytes() if size <= 16 else b"?"
    if order not in (b"little", b"big"):
        raise InputError(f"{records.path}: byteorder is neither little nor big")
    return "<" if order == b"little" else ">"


def _tensor(
    records: ZipRecords, description: TensorDescription, order: str, where: str
) -> StoredTensor:
    storage = description.storage
    dtype, record = DTYPES[storage.type_name], f"data/{storage.key}"
    available = records.size(record)
    if storage.count * dtype.itemsize != available:
        raise InputError(
            f"{where}: {storage.count} values of {dtype} are claimed, "
            f"the record has {available} bytes"
        )
    shape, size = description.shape, math.prod(description.shape)
    last = sum((n - 1) * stride for n, stride in zip(shape, description.strides, strict=True))
    if size and description.offset + last >= storage.count:
        raise InputError(f"{where}: reaches beyond its storage of {storage.count} values")
    if size > storage.count or math.prod(max(1, n) for n in shape) * 8 > np.iinfo(np.intp).max:
        raise InputError(f"{where}: shape {list(shape)} is larger than its storage")
    # Custom dtypes have no byte order: swap the bits as integers.
    bits = np.dtype(f"{order}u{dtype.itemsize}")
    strides = tuple(stride * dtype.itemsize for stride in description.strides)

    def load(start: int, stop: int) -> np.ndarray:
        rows = shape and (stop - start, *shape[1:])
        if not math.prod(rows):
            return np.zeros(rows, dtype)
        first = description.offset * dtype.itemsize + (start * strides[0] if shape else 0)
        last = first + sum((n - 1) * stride for n, stride in zip(rows, strides, strict=True))
        covered = records.read(record).part(first, last + dtype.itemsize).map()
        values = np.ndarray(rows, bits, covered.data, 0, strides)
        return values.astype(bits.newbyteorder("="), copy=False).view(dtype)

    return StoredTensor(shape, dtype, load)
