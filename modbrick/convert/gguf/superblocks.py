"""Blocks of 256 numbers (K-quants), as in github.com/ggml-org/ggml, src/ggml-common.h.

A block holds 256 neighbouring values along the last axis in groups of 16 or 32. It has a scale d in
float16, in some kinds also one of minima, and every group has a small integer s that multiplies d,
in those kinds also one that multiplies the scale of minima. The integers q of the values lie in
planes (`planes`).

Values are computed in the order in which ggml does, s d first, so that every bit is the same; that
product is exact in float32, and so is all of it but for one rounding.
"""

from __future__ import annotations

import numpy as np

from modbrick.convert.gguf.blocks import float16, planes

SUPERBLOCK = 256
"""Values in a block."""


def q2_k(blocks: np.ndarray) -> np.ndarray:
    """Values q s d - m of blocks `[N, 84]`: s and m in a byte, 2-bit q, d, and the minima's d."""
    scales, minima = blocks[:, :16] & np.uint8(15), blocks[:, :16] >> np.uint8(4)
    return _affine(
        planes(blocks[:, 16:80], 2, 32),
        scales * float16(blocks[:, 80:82]),
        minima * float16(blocks[:, 82:84]),
    )


def q3_k(blocks: np.ndarray) -> np.ndarray:
    """Values q s d of blocks `[N, 110]`: third bits, 2-bit q, packed s, d.

    An integer is 4 less where its third bit is 0; s has 6 bits and counts from -32.
    """
    low, high = planes(blocks[:, 96:104], 4, 8), planes(blocks[:, 104:108], 2, 4)
    scales = (low | high << np.uint8(4)).astype(np.int8) - np.int8(32)
    integers = planes(blocks[:, 32:96], 2, 32) | planes(blocks[:, :32], 1, 32) << np.uint8(2)
    return _scaled(integers.astype(np.int8) - np.int8(4), scales * float16(blocks[:, 108:]))


def q4_k(blocks: np.ndarray) -> np.ndarray:
    """Values q s d - m of blocks `[N, 144]`: d, the minima's d, packed s and m, 4-bit q."""
    return _affine(planes(blocks[:, 16:], 4, 32), *_scales_and_minima(blocks))


def q5_k(blocks: np.ndarray) -> np.ndarray:
    """Values q s d - m of blocks `[N, 176]`: as Q4_K, with fifth bits before the others."""
    integers = planes(blocks[:, 48:], 4, 32) | planes(blocks[:, 16:48], 1, 32) << np.uint8(4)
    return _affine(integers, *_scales_and_minima(blocks))


def q6_k(blocks: np.ndarray) -> np.ndarray:
    """Values (q - 32) s d of blocks `[N, 210]`: 4 bits of q, 2 bits of q, signed bytes s, d."""
    integers = planes(blocks[:, :128], 4, 64) | planes(blocks[:, 128:192], 2, 32) << np.uint8(4)
    scales = blocks[:, 192:208].view(np.int8) * float16(blocks[:, 208:])
    return _scaled(integers.astype(np.int8) - np.int8(32), scales)


def _scales_and_minima(blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns s d and m of the 8 groups of a Q4_K or Q5_K block, float32 `[N, 8]` each.

    Of 12 bytes the first 4 hold the s of groups 0 to 3 in their lower 6 bits, the next 4 the m, and
    the last 4 the lower halves of the s and m of groups 4 to 7, whose upper 2 bits are those that
    the first 8 bytes have left.
    """
    packed = blocks[:, 4:16]
    first = packed[:, :8] & np.uint8(63)
    upper = packed[:, :8] >> np.uint8(6) << np.uint8(4)
    scales = np.hstack([first[:, :4], packed[:, 8:] & np.uint8(15) | upper[:, :4]])
    minima = np.hstack([first[:, 4:], packed[:, 8:] >> np.uint8(4) | upper[:, 4:]])
    return scales * float16(blocks[:, :2]), minima * float16(blocks[:, 2:4])


def _scaled(integers: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Returns integers `[N, 256]` times the scales `[N, G]` of their groups."""
    groups = integers.reshape(*scales.shape, -1)
    return (groups * scales[..., None]).reshape(integers.shape)


def _affine(integers: np.ndarray, scales: np.ndarray, minima: np.ndarray) -> np.ndarray:
    """Returns what `_scaled` does, less the minima `[N, G]`."""
    values = _scaled(integers, scales).reshape(*scales.shape, -1)
    values -= minima[..., None]
    return values.reshape(integers.shape)
