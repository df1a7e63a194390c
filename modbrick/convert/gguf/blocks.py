"""Blocks of 32 numbers that share a scale, as in github.com/ggml-org/ggml, src/ggml-common.h.

A block holds 32 neighbouring values along the last axis: a scale d in float16, in some kinds also a
minimum m, and 32 small integers q. The halves of a byte of a Q4 or Q5 block are those of the values
i (low) and i + 16 (high).

Every value is exact: an integer of at most 8 bits times a float16 fits float32, and q d + m is
rounded once.
"""

from __future__ import annotations

import numpy as np

BLOCK = 32
"""Values that share a scale."""


def q4_0(blocks: np.ndarray) -> np.ndarray:
    """Values (q - 8) d of blocks `[N, 18]`: d, then 32 halves of bytes."""
    return (_halves(blocks[:, 2:]) - np.float32(8)) * float16(blocks[:, :2])


def q4_1(blocks: np.ndarray) -> np.ndarray:
    """Values q d + m of blocks `[N, 20]`: d, m, then 32 halves of bytes."""
    values = _halves(blocks[:, 4:]) * float16(blocks[:, :2])
    values += float16(blocks[:, 2:4])
    return values


def q5_0(blocks: np.ndarray) -> np.ndarray:
    """Values (q - 16) d of blocks `[N, 22]`: d, 32 fifth bits, then 32 halves of bytes."""
    integers = _halves(blocks[:, 6:]) | _fifth_bits(blocks[:, 2:6])
    return (integers - np.float32(16)) * float16(blocks[:, :2])


def q5_1(blocks: np.ndarray) -> np.ndarray:
    """Values q d + m of blocks `[N, 24]`: d, m, 32 fifth bits, then 32 halves of bytes."""
    integers = _halves(blocks[:, 8:]) | _fifth_bits(blocks[:, 4:8])
    values = integers * float16(blocks[:, :2])
    values += float16(blocks[:, 2:4])
    return values


def q8_0(blocks: np.ndarray) -> np.ndarray:
    """Values q d of blocks `[N, 34]`: d, then 32 signed bytes."""
    return blocks[:, 2:].view(np.int8) * float16(blocks[:, :2])


def float16(stored: np.ndarray) -> np.ndarray:
    """Returns the float16 in the bytes `[N, 2]` of each block as float32 `[N, 1]`."""
    return np.ascontiguousarray(stored).view("<f2").astype(np.float32)


def planes(packed: np.ndarray, bits: int, run: int) -> np.ndarray:
    """Returns small integers that lie in planes, uint8 `[N, 8 B / bits]` of bytes `[N, B]`.

    Args:
      packed: of each block.
      bits: of an integer.
      run: bytes that belong together: their lowest bits hold integers one after the other, then
        the next bits the integers that follow, and so on; then comes the next run.
    """
    shifts = np.arange(0, 8, bits, dtype=np.uint8)[:, None]
    shifted = packed.reshape(len(packed), -1, 1, run) >> shifts
    shifted &= np.uint8((1 << bits) - 1)
    return shifted.reshape(len(packed), -1)


def _halves(packed: np.ndarray) -> np.ndarray:
    return planes(packed, 4, BLOCK // 2)


def _fifth_bits(packed: np.ndarray) -> np.ndarray:
    return np.unpackbits(packed, axis=1, bitorder="little") << np.uint8(4)
