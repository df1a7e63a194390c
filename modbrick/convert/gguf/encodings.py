"""Encodings of numbers in GGUF files: stored plainly, or as blocks that share scales."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import jax.numpy as jnp
import numpy as np

from modbrick.convert.gguf import blocks, superblocks
from modbrick.convert.gguf.blocks import BLOCK
from modbrick.convert.gguf.superblocks import SUPERBLOCK
from modbrick.errors import InputError

AT_A_TIME = 1 << 18
"""Values that are decoded together, which bounds the memory for what lies between."""


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
        packed = stored.reshape(-1, self.bytes)
        values = np.empty((len(packed), self.values), self.dtype)
        step = AT_A_TIME // self.values
        # An infinite scale of a damaged file makes NaN, which is reported where it is used.
        with np.errstate(invalid="ignore"):
            for start in range(0, len(packed), step):
                values[start : start + step] = self.decode(packed[start : start + step])
        return values.reshape(-1)


_FLOAT32 = np.dtype("<f4")

ENCODINGS: Mapping[int, Encoding] = {
    0: Encoding("F32", _FLOAT32, 1, 4),
    1: Encoding("F16", np.dtype("<f2"), 1, 2),
    2: Encoding("Q4_0", _FLOAT32, BLOCK, 18, blocks.q4_0),
    3: Encoding("Q4_1", _FLOAT32, BLOCK, 20, blocks.q4_1),
    6: Encoding("Q5_0", _FLOAT32, BLOCK, 22, blocks.q5_0),
    7: Encoding("Q5_1", _FLOAT32, BLOCK, 24, blocks.q5_1),
    8: Encoding("Q8_0", _FLOAT32, BLOCK, 34, blocks.q8_0),
    10: Encoding("Q2_K", _FLOAT32, SUPERBLOCK, 84, superblocks.q2_k),
    11: Encoding("Q3_K", _FLOAT32, SUPERBLOCK, 110, superblocks.q3_k),
    12: Encoding("Q4_K", _FLOAT32, SUPERBLOCK, 144, superblocks.q4_k),
    13: Encoding("Q5_K", _FLOAT32, SUPERBLOCK, 176, superblocks.q5_k),
    14: Encoding("Q6_K", _FLOAT32, SUPERBLOCK, 210, superblocks.q6_k),
    30: Encoding("BF16", np.dtype(jnp.bfloat16), 1, 2),
}
"""Those that are read, by their code in files."""

REFUSED: Mapping[int, str] = {
    9: "Q8_1",
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
