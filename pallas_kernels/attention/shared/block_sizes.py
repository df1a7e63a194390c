"""Numbers of queries and keys in a block, chosen by measurement."""

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
    """Returns the block sizes of the XLA path.

    Measured on CPU (Zen 4, width 64, forward and backward): of 32 to 128 queries by 32 to 128 keys,
    64 by 64 is the fastest up to some 1,024 keys, where larger blocks compute too much beyond the
    diagonal and smaller ones make poor matrix products; beyond, 128 keys gain a tenth. A single
    query, as in decoding, is best with 128 keys of 64 to 512 too.
    """
    query = min(64, query_length)
    key = 64 if query == 64 and key_length <= 1024 else 128
    if key_length <= key and key_length > 16 and key_length % 16:
        # Two blocks of whole spans of 16 keys, which overlap.
        key = 16 * -(-key_length // 32)
    return BlockSizes(query=query, key=min(key, key_length))
