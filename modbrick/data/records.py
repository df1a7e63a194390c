"""The records of a data set: token ids of one part of one document, as plain bytes.

A record is an 8-byte little-endian header (format version, bytes an id takes, number of ids) and
the ids. A document of up to `PART` ids is one record; a longer one continues in the records right
after, so that a row of a very long document can be read without reading the document.
"""

from __future__ import annotations

import struct

import numpy as np
from jaxtyping import Integer

from modbrick.errors import InputError

PART = 65_536
RECORD_VERSION = 1
_HEADER = struct.Struct("<HHI")


def id_dtype(vocabulary: int) -> np.dtype:
    """Returns the smallest dtype that holds every id: little-endian uint16 or uint32."""
    return np.dtype("<u2") if vocabulary <= 1 << 16 else np.dtype("<u4")


def encode_record(ids: Integer[np.ndarray, " T"], dtype: np.dtype) -> bytes:
    """Returns the record of at most `PART` token ids."""
    return _HEADER.pack(RECORD_VERSION, dtype.itemsize, len(ids)) + ids.astype(dtype).tobytes()


def decode_record(record: bytes, name: str) -> Integer[np.ndarray, " T"]:
    """Returns the token ids of a record (a read-only view of it).

    Raises:
      InputError: the bytes are no record of this format; `name` says where they are.
    """
    if len(record) >= _HEADER.size:
        version, width, count = _HEADER.unpack_from(record)
        if (
            version == RECORD_VERSION
            and width in (2, 4)
            and len(record) == _HEADER.size + width * count
        ):
            return np.frombuffer(record, np.dtype(f"<u{width}"), count, _HEADER.size)
    raise InputError(f"{name}: not a record of a modbrick data set; prepare the data again")


def parts(tokens: Integer[np.ndarray, " N"]) -> Integer[np.ndarray, " N"]:
    """Returns how many records documents of so many ids take."""
    return -(-tokens // PART)
