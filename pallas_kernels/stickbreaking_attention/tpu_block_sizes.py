"""Block sizes of the TPU kernels, by chip, chosen by the compilers' static schedules."""

from __future__ import annotations

import dataclasses

from pallas_kernels.stickbreaking_attention.block_sizes import BlockSizes

LANES = 128


@dataclasses.dataclass(frozen=True)
class TpuBlockSizes:
    """Block sizes of the two kernels; query counts rows, that is queries times heads of a group.

    Attributes:
      forward: of the forward kernel.
      backward: of the backward kernel.
    """

    forward: BlockSizes
    backward: BlockSizes

    def __post_init__(self) -> None:
        for name in ("forward", "backward"):
            sizes = getattr(self, name)
            if sizes.query % LANES or sizes.key % LANES or min(sizes.query, sizes.key) < LANES:
                raise ValueError(f"{name} block sizes must be multiples of {LANES}, got {sizes}")
        # A block of keys is laid out in an order of its own, which both kernels share.
        if self.forward.key != self.backward.key:
            raise ValueError(
                "forward and backward must have key blocks of one size, "
                f"got {self.forward.key} and {self.backward.key}"
            )


def tpu_block_sizes(rows: int, keys: int, width: int, itemsize: int) -> TpuBlockSizes:
    """Returns the block sizes for `rows` queries (times heads of a group) and `keys` keys.

    Args:
      rows: rows of queries of one key/value head.
      keys: number of keys.
      width: the larger of the widths of keys and values.
      itemsize: bytes of an element of the inputs.
    """
    largest = 512 if width * itemsize <= 512 else 256
    if width * itemsize > 2048:
        largest = 128
    query = min(largest, _round_up(rows))
    key = min(largest, _round_up(keys))
    return TpuBlockSizes(forward=BlockSizes(query, key), backward=BlockSizes(query, key))


def _round_up(length: int) -> int:
    """The smallest power of two times 128 that holds a length."""
    size = LANES
    while size < length:
        size *= 2
    return size
