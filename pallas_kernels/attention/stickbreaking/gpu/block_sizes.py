"""Keys in a block of the GPU kernels, and how far ahead they are copied, by chip."""

from __future__ import annotations

import dataclasses

# Shared memory that a block of the grid can have on Hopper, in bytes.
SHARED_MEMORY = 227 * 1024


@dataclasses.dataclass(frozen=True)
class GPUBlockSizes:
    """Blocks of a kernel.

    Attributes:
      keys: keys in a block: what a tile holds.
      stages: blocks in shared memory at a time, those being copied included.
    """

    keys: int
    stages: int


# By the larger of the two head widths, up to and including. Chosen by what the compiler says of
# registers (no spills) and by what fits into shared memory; not measured on a chip.
_FORWARD = {
    "H100": {64: GPUBlockSizes(64, 4), 128: GPUBlockSizes(64, 3), 256: GPUBlockSizes(64, 2)},
}
_D_QUERY = {
    "H100": {64: GPUBlockSizes(64, 3), 128: GPUBlockSizes(64, 2), 256: GPUBlockSizes(64, 1)},
}
# What passes through shared memory here are blocks of 128 rows.
_D_KEY_VALUE = {
    "H100": {64: GPUBlockSizes(64, 2), 128: GPUBlockSizes(64, 2), 256: GPUBlockSizes(64, 1)},
}
# Queries whose gradients are computed at a time: what is written down for them is linear in keys.
ROWS_AT_A_TIME = 2048
_LIKE = {"H200": "H100", "GH200": "H100", "H800": "H100", "H20": "H100"}


def forward_block_sizes(width: int, chip: str = "H100") -> GPUBlockSizes:
    """Returns the blocks of the forward kernel for heads of a width on a chip."""
    return _for_width(_FORWARD, width, chip)


def d_query_block_sizes(width: int, chip: str = "H100") -> GPUBlockSizes:
    """Returns the blocks of the kernel for the gradient of the queries."""
    return _for_width(_D_QUERY, width, chip)


def d_key_value_block_sizes(width: int, chip: str = "H100") -> GPUBlockSizes:
    """Returns the blocks of the kernel for the gradients of keys and values."""
    return _for_width(_D_KEY_VALUE, width, chip)


def _for_width(table: dict[str, dict[int, GPUBlockSizes]], width: int, chip: str) -> GPUBlockSizes:
    sizes = table[_LIKE.get(chip, chip)]
    return sizes[min(limit for limit in sizes if width <= limit)]
