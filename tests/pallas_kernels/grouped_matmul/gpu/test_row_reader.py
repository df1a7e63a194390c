"""Addresses that threads of a producer warpgroup read and write, checked as plain arithmetic."""

from __future__ import annotations

import numpy as np
import pytest

from pallas_kernels.grouped_matmul.gpu import row_reader as reader

THREADS = np.arange(reader.WARPGROUP)


def _swizzled(row: int, byte: int, width: int) -> int:
    """Address of byte `byte` of a row in a buffer of rows of `width` bytes, by the definition.

    Tiles of 8 rows by 128 bytes, row by row of tiles; the hardware's 128-byte swizzle exchanges
    bits 4 to 6 of an address by exclusive or with bits 7 to 9.
    """
    tile = row // 8 * (width // 128) + byte // 128
    address = tile * 1024 + row % 8 * 128 + byte % 128
    return address ^ ((address >> 7 & 7) << 4)


@pytest.mark.parametrize(("rows", "width"), [(16, 128), (128, 128), (64, 256), (64, 512)])
def test_each_chunk_of_the_tile_goes_where_wgmma_looks_for_it(rows: int, width: int) -> None:
    column_tiles = width // reader.SWIZZLE
    written = {}
    for step in range(rows // reader.ROWS_AT_ONCE):
        for column_tile in range(column_tiles):
            row = reader.source_row(THREADS) + step * reader.ROWS_AT_ONCE
            byte = reader.source_byte(THREADS) + column_tile * reader.SWIZZLE
            target = reader.target_byte(THREADS, step, column_tile, column_tiles)
            for thread in THREADS:
                written[int(target[thread])] = (int(row[thread]), int(byte[thread]))
    expected = {
        _swizzled(row, byte, width): (row, byte)
        for row in range(rows)
        for byte in range(0, width, reader.CHUNK)
    }
    assert written == expected


def test_neighbouring_threads_read_whole_lines_and_write_distinct_banks() -> None:
    row, byte = reader.source_row(THREADS), reader.source_byte(THREADS)
    for first in range(0, reader.WARPGROUP, 8):
        eight = slice(first, first + 8)
        assert len(set(row[eight].tolist())) == 1
        assert byte[eight].tolist() == list(range(0, 128, 16))
        banks = reader.target_byte(THREADS, 0, 0, 1)[eight] // 16 % 8
        assert sorted(banks.tolist()) == list(range(8))


def test_kernels_are_not_interpreted_unless_asked_for() -> None:
    assert not reader.interpreted()
