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


def xla_block_sizes(rows: int, query_length: int, key_length: int) -> BlockSizes:
    """Returns the block sizes of the XLA path.

    Args:
      rows: batch size times query heads: all of them are worked on at once.
      query_length: Sq.
      key_length: Sk.
    """
    del rows
    import os

    bq = int(os.environ.get("BQ", "64"))
    bk = int(os.environ.get("BK", "64"))
    return BlockSizes(query=min(bq, query_length), key=min(bk, key_length))
