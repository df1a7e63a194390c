"""How many queries and keys a block holds, chosen by measurement."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class BlockSizes:
    """Lengths of the blocks that a kernel works on.

    Attributes:
      query: queries in a block.
      key: keys in a block.
    """

    query: int
    key: int


def xla_block_sizes(query_length: int, key_length: int) -> BlockSizes:
    """Returns the block sizes of the XLA path for these lengths."""
    return BlockSizes(query=min(128, query_length), key=min(128, key_length))
