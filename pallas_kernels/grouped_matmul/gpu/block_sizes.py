"""Block sizes of the GPU kernels, by what limits them on Hopper.

Two consumer warpgroups hold a float32 accumulator of 64 rows by up to 256 columns each: 128 of the
224 registers that a thread has once the producer has given its own away. 128 x 256 is the largest
tile without spills (measured by compiling: 128 columns more spill), and a block needs as many bytes
a product as it can spare: 48 KiB a step of 64, for 1,024 cycles of the matrix unit. Shared memory
takes what is left: 227 KiB a block, so four steps of a ring and a staging buffer for the output.
"""

from __future__ import annotations

import dataclasses
import math

SHARED_MEMORY = 227 * 1024  # bytes a block can have on Hopper
CONSUMERS = 2
CONSUMER_ROWS = 64  # the height of one wgmma
PRODUCER_REGISTERS = 56
CONSUMER_REGISTERS = 224
# Elements between the staged rows of an output, so that the eight rows that a warp writes at once
# begin in different banks of shared memory.
STAGING_PADDING = 8
_RESERVED = 1024  # barriers, and the alignment of buffers
_MAX_STAGES = 6


@dataclasses.dataclass(frozen=True)
class Blocks:
    """Sizes of what a block of the grid works on at once.

    Attributes:
        rows: height of an output tile; both consumers' together.
        columns: its width.
        depth: how much of the contracted axis a step takes.
        stages: steps in the ring of shared memory buffers.
        reads_in_flight: groups of row reads that the producer leaves under way, at most
            `stages - 2`: with more it would wait for a buffer that waits for its arrival.
        band: columns of tiles that neighbouring blocks share (`tiles.in_bands`).
        staged_columns: columns of an output that are staged in shared memory at once.
        staging_buffers: as many as there are outputs, and two for one output, so that one of them
            is filled while the other is copied out.
        epilogue_columns: columns for which the epilogue is computed at once.
    """

    rows: int
    columns: int
    depth: int
    stages: int
    reads_in_flight: int
    band: int
    staged_columns: int
    staging_buffers: int
    epilogue_columns: int

    def __post_init__(self) -> None:
        if not 1 <= self.reads_in_flight <= self.stages - 2:
            raise ValueError(
                f"reads_in_flight={self.reads_in_flight} must lie between 1 and stages - 2 = "
                f"{self.stages - 2}"
            )
        if self.columns % self.staged_columns or self.staged_columns % self.epilogue_columns:
            raise ValueError(
                f"columns={self.columns} must be a multiple of staged_columns="
                f"{self.staged_columns}, and that of epilogue_columns={self.epilogue_columns}"
            )


def _width(columns: int, limit: int) -> int:
    """The smallest of 64, 128 and 256 that holds so many columns, up to a limit."""
    return min(64 if columns <= 64 else 128 if columns <= 128 else 256, limit)


def _stages(step_bytes: int, staging_bytes: int) -> int:
    return min((SHARED_MEMORY - _RESERVED - staging_bytes) // step_bytes, _MAX_STAGES)


def row_blocks(
    columns: int,
    itemsize: int,
    output_itemsize: int,
    *,
    banks: int = 1,
    outputs: int = 1,
    beside: int = 0,
) -> Blocks:
    """Sizes for the products of rows by experts' weights.

    Args:
        columns: of the output, a multiple of 64.
        itemsize: bytes of an operand's element.
        output_itemsize: bytes of an output's element.
        banks: weights that a row is multiplied with at once; each has an accumulator.
        outputs: how many there are.
        beside: arrays that the epilogue reads. With any, a block's columns divide `columns`.
    """
    width = _width(math.gcd(columns, 256) if beside else columns, 256 // banks)
    rows, depth = CONSUMERS * CONSUMER_ROWS, 128 // itemsize
    staged = min((128 if outputs == 1 else 64) if output_itemsize == 2 else 32, width)
    buffers = max(outputs, 2)
    staging = buffers * rows * (staged + STAGING_PADDING) * output_itemsize
    stages = _stages((rows + banks * width) * depth * itemsize, staging)
    # Beside the accumulator there are some 90 registers, for half a dozen values of a column pair.
    at_once = min(16, staged) if beside else staged
    flight = min(stages - 2, 2)
    return Blocks(rows, width, depth, stages, flight, 2048 // width, staged, buffers, at_once)


def weight_gradient_blocks(columns: int, itemsize: int, output_itemsize: int) -> Blocks:
    """Sizes for the gradients of weights; `rows` and `columns` are those of a weight."""
    width = _width(columns, 256)
    rows, depth = CONSUMERS * CONSUMER_ROWS, 64
    staged = 128 // output_itemsize
    staging = 2 * rows * staged * output_itemsize
    stages = _stages((rows + width) * depth * itemsize, staging)
    flight = min(stages - 2, 2)
    return Blocks(rows, width, depth, stages, flight, 2048 // width, staged, 2, staged)
