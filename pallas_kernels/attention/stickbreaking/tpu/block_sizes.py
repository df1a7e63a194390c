"""Block sizes of the TPU kernels, by generation, and how they are chosen.

Chosen by the compilers' static schedules; docs/kernels/stickbreaking_attention.md has the figures.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
from collections.abc import Iterator

from pallas_kernels.attention.shared.block_sizes import BlockSizes
from pallas_kernels.target import device_kind_in_force

LANES = 128
MEBI = 2**20


@dataclasses.dataclass(frozen=True)
class TpuBlockSizes:
    """Block sizes of the two kernels; `query` counts rows, that is queries times heads of a group.

    Attributes:
      forward: of the forward kernel.
      backward: of the backward kernel.
    """

    forward: BlockSizes
    backward: BlockSizes

    def __post_init__(self) -> None:
        for name in ("forward", "backward"):
            sizes = getattr(self, name)
            for size in (sizes.query, sizes.key):
                if size < LANES or size % LANES:
                    raise ValueError(
                        f"{name} block sizes must be positive multiples of {LANES}, got {sizes}"
                    )


@dataclasses.dataclass(frozen=True)
class Choice:
    """Block sizes for rows of at most so many bytes and keys (None: any number)."""

    row_bytes: int
    keys: int | None
    blocks: TpuBlockSizes


@dataclasses.dataclass(frozen=True)
class Generation:
    """Resources of a generation of TPUs, and the block sizes for it.

    Attributes:
      vmem: bytes of vector memory that a kernel may use; the rest is left to the compiler.
      choices: block sizes, from narrow to wide heads and from short to long rows; the first that
        holds a case is for it.
    """

    vmem: int
    choices: tuple[Choice, ...]


def _blocks_of(forward: tuple[int, int], backward: tuple[int, int]) -> TpuBlockSizes:
    return TpuBlockSizes(BlockSizes(*forward), BlockSizes(*backward))


_LARGE = _blocks_of((512, 512), (512, 256))
_MEDIUM = _blocks_of((512, 256), (512, 128))
_FLAT = _blocks_of((512, 128), (256, 128))
# A short row has many tiles on its diagonal, which are computed whole: fewer keys waste less.
_NARROW = (Choice(256, 2048, _MEDIUM), Choice(256, None, _LARGE))
_V5P = (*_NARROW, Choice(512, None, _MEDIUM), Choice(2048, None, _FLAT))
_V5E = (*_NARROW, Choice(1024, None, _MEDIUM), Choice(2048, None, _FLAT))
# Matrix units of 256 x 256 want both sides long.
_V6E = (Choice(512, None, _LARGE), Choice(2048, None, _blocks_of((512, 256), (512, 256))))
GENERATIONS = {
    "v4": Generation(14 * MEBI, (Choice(512, None, _blocks_of((256, 256), (256, 256))),)),
    "v5e": Generation(112 * MEBI, _V5E),
    "v5p": Generation(60 * MEBI, _V5P),
    "v6e": Generation(112 * MEBI, _V6E),
    "tpu7x": Generation(60 * MEBI, _V6E),
}
# Where the trace does not know the TPU: what fits the smallest memory of those in use.
_DEFAULT = "v5p"
_KINDS = {
    "TPU v4": "v4",
    "TPU v5 lite": "v5e",
    "TPU v5e": "v5e",
    "TPU v5": "v5p",
    "TPU v5p": "v5p",
    "TPU v6 lite": "v6e",
    "TPU v6e": "v6e",
    "TPU7x": "tpu7x",
    "TPU7": "tpu7x",
}

_generation: contextvars.ContextVar[str | None] = contextvars.ContextVar("generation", default=None)
_blocks: contextvars.ContextVar[TpuBlockSizes | None] = contextvars.ContextVar(
    "blocks", default=None
)


@contextlib.contextmanager
def compiling_for(
    generation: str | None = None, blocks: TpuBlockSizes | None = None
) -> Iterator[None]:
    """Fixes what kernels traced in this context are cut for.

    jit's caches know nothing of it: trace anew in each context (a new function, or `jax.jit` of a
    new lambda).

    Args:
      generation: a key of `GENERATIONS`, for traces that the device in force says nothing about.
      blocks: block sizes, in place of those of the table.

    Raises:
      ValueError: the generation is unknown.
    """
    if generation is not None and generation not in GENERATIONS:
        known = ", ".join(map(repr, GENERATIONS))
        raise ValueError(f"generation={generation!r} is unknown; known are {known}")
    tokens = _generation.set(generation), _blocks.set(blocks)
    try:
        yield
    finally:
        _generation.reset(tokens[0])
        _blocks.reset(tokens[1])


def generation_in_force() -> Generation:
    """The generation that a trace is cut for: that of the context, or of the device in force."""
    return GENERATIONS[_generation.get() or _KINDS.get(device_kind_in_force(), _DEFAULT)]


def tpu_block_sizes(rows: int, keys: int, width: int, itemsize: int) -> TpuBlockSizes:
    """Returns the block sizes of the generation in force.

    Args:
      rows: rows of queries of one key/value head.
      keys: number of keys.
      width: the larger of the widths of keys and values.
      itemsize: bytes of an element of the inputs.
    """
    override = _blocks.get()
    if override is not None:
        return override
    choices = generation_in_force().choices
    row_bytes = width * itemsize
    chosen = next(
        (
            choice
            for choice in choices
            if row_bytes <= choice.row_bytes and (choice.keys is None or keys <= choice.keys)
        ),
        choices[-1],
    )
    # Heads wider than all that is known leave VMEM for smaller tiles only.
    shrink = max(1, -(-row_bytes // chosen.row_bytes))

    def shrunk(size: int, length: int) -> int:
        return min(max(LANES, size // shrink // LANES * LANES), _round_up(length))

    def fitted(sizes: BlockSizes) -> BlockSizes:
        return BlockSizes(shrunk(sizes.query, rows), shrunk(sizes.key, keys))

    return TpuBlockSizes(fitted(chosen.blocks.forward), fitted(chosen.blocks.backward))


def keys_at_a_time(keys: int, block: int, widths: int) -> int:
    """Returns how many keys the backward kernel takes in one call.

    The gradients of these keys and of their values lie in VMEM, in float32. More keys than this
    are walked over in several calls, which hand on what is spent of the sticks.

    Args:
      keys: number of keys.
      block: keys of a block.
      widths: of keys and values together.
    """
    # In VMEM, rows are whole registers.
    lanes = -(-widths // LANES) * LANES
    most = generation_in_force().vmem // 2 // (4 * lanes) // block * block
    return min(max(most, block), -(-keys // block) * block)


def candidates() -> list[TpuBlockSizes]:
    """Returns block sizes worth trying, for whoever tunes the kernels; both kernels have one."""
    return [
        TpuBlockSizes(forward=BlockSizes(query, key), backward=BlockSizes(query, key))
        for query in (128, 256, 512, 1024)
        for key in (128, 256, 512, 1024)
    ]


def _round_up(length: int) -> int:
    """The smallest power of two times 128 that holds a length."""
    size = LANES
    while size < length:
        size *= 2
    return size
