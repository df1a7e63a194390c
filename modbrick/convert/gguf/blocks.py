"""Numbers in GGUF files: stored plainly, or as blocks that share a scale.

Blocks as in github.com/ggml-org/ggml, src/ggml-common.h. A block of 32 neighbouring values along
the last axis holds a scale d in float16, for Q4_1 also a minimum m, and 32 small integers q. The
halves of a byte of a Q4 block are the values i (low) and i + 16 (high).

Every value is exact: an integer of at most 8 bits times a float16 fits float32, and q d + m is
rounded once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import jax.numpy as jnp
import numpy as np

from modbrick.errors import InputError

BLOCK = 32
"""Values that share a scale."""


def _q4_0(blocks: np.ndarray) -> np.ndarray:
    """Values (q - 8) d of blocks `[N, 18]`: d, then 32 halves of bytes."""
    return (_nibbles(blocks[:, 2:]) - np.float32(8)) * _float16(blocks[:, :2])


def _q4_1(blocks: np.ndarray) -> np.ndarray:
    """Values q d + m of blocks `[N, 20]`: d, m, then 32 halves of bytes."""
    values = _nibbles(blocks[:, 4:]) * _float16(blocks[:, :2])
    values += _float16(blocks[:, 2:4])
    return values


def _q8_0(blocks: np.ndarray) -> np.ndarray:
    """Values q d of blocks `[N, 34]`: d, then 32 signed bytes."""
    return blocks[:, 2:].view(np.int8) * _float16(blocks[:, :2])


def _float16(stored: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(stored).view("<f2").astype(np.float32)


def _nibbles(packed: np.ndarray) -> np.ndarray:
    values = np.empty((len(packed), BLOCK), np.float32)
    values[:, : BLOCK // 2] = packed & 0xF
    values[:, BLOCK // 2 :] = packed >> 4
    return values


@dataclasses.dataclass(frozen=True)
class Encoding:
    """Encoding of numbers in a file.

    Attributes:
      name: in the format's own documentation.
      dtype: of the values when they are read.
      values, bytes: of one block; blocks lie along the last axis.
      decode: turns blocks `[N, bytes]` into values `[N, values]`; None: the bytes are the values.
    """

    name: str
    dtype: np.dtype
    values: int
    bytes: int
    decode: Callable[[np.ndarray], np.ndarray] | None = None

    def read(self, stored: np.ndarray) -> np.ndarray:
        """Returns the values of whole blocks, flat, from their bytes, flat."""
        if self.decode is None:
            return stored.view(self.dtype)
        # An infinite scale of a damaged file makes NaN, which is reported where it is used.
        with np.errstate(invalid="ignore"):
            return self.decode(stored.reshape(-1, self.bytes)).reshape(-1)


_FLOAT32 = np.dtype("<f4")

ENCODINGS: Mapping[int, Encoding] = {
    0: Encoding("F32", _FLOAT32, 1, 4),
    1: Encoding("F16", np.dtype("<f2"), 1, 2),
    2: Encoding("Q4_0", _FLOAT32, BLOCK, 18, _q4_0),
    3: Encoding("Q4_1", _FLOAT32, BLOCK, 20, _q4_1),
    8: Encoding("Q8_0", _FLOAT32, BLOCK, 34, _q8_0),
    30: Encoding("BF16", np.dtype(jnp.bfloat16), 1, 2),
}
"""Those that are read, by their code in files."""

REFUSED: Mapping[int, str] = {
    6: "Q5_0",
    7: "Q5_1",
    9: "Q8_1",
    10: "Q2_K",
    11: "Q3_K",
    12: "Q4_K",
    13: "Q5_K",
    14: "Q6_K",
    15: "Q8_K",
    16: "IQ2_XXS",
    17: "IQ2_XS",
    18: "IQ3_XXS",
    19: "IQ1_S",
    20: "IQ4_NL",
    21: "IQ3_S",
    22: "IQ2_S",
    23: "IQ4_XS",
    24: "I8",
    25: "I16",
    26: "I32",
    27: "I64",
    28: "F64",
    29: "IQ1_M",
    34: "TQ1_0",
    35: "TQ2_0",
    39: "MXFP4",
    40: "NVFP4",
    41: "Q1_0",
}
"""Names of other types, for messages."""


def encoding(code: int, where: str) -> Encoding:
    """Returns how a tensor is stored.

    Raises:
      InputError: a type that is not read, by its name; the message begins with `where`.
    """
    if code not in ENCODINGS:
        known = ", ".join(each.name for each in ENCODINGS.values())
        name = REFUSED.get(code, f"number {code}")
        raise InputError(f"{where} is stored as {name}, which is not read; it can be {known}")
    return ENCODINGS[code]
