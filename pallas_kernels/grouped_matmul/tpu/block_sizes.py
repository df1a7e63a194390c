"""Block sizes of the kernels for TPUs, per generation, and how they are chosen.

VMEM decides most: the widest column block is best, since the rows are fetched, and the experts'
matrices read, once for each. Heights come from the table.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
from collections.abc import Iterator

from pallas_kernels.target import device_kind_in_force

MEBI = 2**20


@dataclasses.dataclass(frozen=True)
class BlockSizes:
    """Sizes that a kernel cuts its work into.

    Attributes:
        height: rows of a tile.
        columns: columns of the results that a step computes, at most.
        chunk: columns that one iteration of the inner loop computes, at most.
        unrolled: whether the iterations are written out one after the other. In a loop, matrix
            units fill and drain once an iteration, which costs the more, the faster they are; and
            the copies that an iteration starts are scheduled before the products of the next one,
            not after its own.
    """

    height: int = 256
    columns: int = 2048
    chunk: int = 256
    unrolled: bool = False

    def __post_init__(self) -> None:
        if self.height < 8 or self.height % 8:
            raise ValueError(f"height must be a positive multiple of 8, got {self.height}")
        for name in ("columns", "chunk"):
            value = getattr(self, name)
            if value < 128 or value % 128:
                raise ValueError(f"{name} must be a positive multiple of 128, got {value}")


@dataclasses.dataclass(frozen=True)
class Generation:
    """Resources of a generation of TPUs, and the block sizes for it.

    Attributes:
        vmem: bytes of vector memory that a kernel may use; the rest is left to the compiler.
        blocks: for each kernel, its block sizes.
        cores: TensorCores that work for one jax device.
    """

    vmem: int
    blocks: dict[str, BlockSizes]
    cores: int = 1


_SMALL_MXU = {
    "matmul": BlockSizes(256, 2048, 256, unrolled=True),
    "matmul_gradient": BlockSizes(256, 2048, 1024),
    "weights": BlockSizes(256, 1024, 1024),
    "feed_forward": BlockSizes(128, 2048, 1024, unrolled=True),
    "feed_forward_gradient": BlockSizes(128, 2048, 512),
}
_LARGE_MXU = {
    "matmul": BlockSizes(256, 2048, 256, unrolled=True),
    "matmul_gradient": BlockSizes(256, 2048, 256, unrolled=True),
    "weights": BlockSizes(256, 1024, 512, unrolled=True),
    "feed_forward": BlockSizes(256, 2048, 1024, unrolled=True),
    "feed_forward_gradient": BlockSizes(256, 2048, 512),
}
# Room for longer iterations, which fill and drain the matrix units less often.
_LARGE_MXU_AND_VMEM = _LARGE_MXU | {"feed_forward_gradient": BlockSizes(256, 2048, 1024)}
KERNELS = tuple(_SMALL_MXU)
# Measured in schedules compiled ahead of time; docs/kernels/grouped_matmul.md has the figures.
GENERATIONS = {
    "v5e": Generation(112 * MEBI, _SMALL_MXU),
    "v5p": Generation(60 * MEBI, _SMALL_MXU, cores=2),
    "v6e": Generation(112 * MEBI, _LARGE_MXU_AND_VMEM),
    "tpu7x": Generation(60 * MEBI, _LARGE_MXU),
}
# For TPUs that the trace does not know: what fits the smallest memory of those in use.
_DEFAULT = "v5p"
_KINDS = {
    "TPU v5 lite": "v5e",
    "TPU v5e": "v5e",
    "TPU v5": "v5p",
    "TPU v5p": "v5p",
    "TPU v6 lite": "v6e",
    "TPU v6e": "v6e",
    "TPU7x": "tpu7x",
    "TPU7": "tpu7x",
}

# Their 16 MiB of VMEM hold no useful block of an expert's matrix beside the rows.
TOO_SMALL = ("TPU v2", "TPU v3", "TPU v4", "TPU v4 lite")

_generation: contextvars.ContextVar[str | None] = contextvars.ContextVar("generation", default=None)
_blocks: contextvars.ContextVar[dict[str, BlockSizes] | None] = contextvars.ContextVar(
    "blocks", default=None
)


@contextlib.contextmanager
def compiling_for(
    generation: str | None = None, blocks: dict[str, BlockSizes] | None = None
) -> Iterator[None]:
    """Fixes what kernels traced in this context are cut for.

    jit's caches know nothing of it: trace anew in each context (a new function, or `jax.jit` of a
    new lambda).

    Args:
        generation: a key of `GENERATIONS`, for traces that the device in force says nothing about.
        blocks: block sizes by kernel (`KERNELS`), in place of those of the table.

    Raises:
        ValueError: the generation or a kernel is unknown.
    """
    if generation is not None and generation not in GENERATIONS:
        known = ", ".join(map(repr, GENERATIONS))
        raise ValueError(f"generation={generation!r} is unknown; known are {known}")
    for name in blocks or {}:
        if name not in KERNELS:
            raise ValueError(
                f"blocks={name!r} is no kernel; known are {', '.join(map(repr, KERNELS))}"
            )
    tokens = _generation.set(generation), _blocks.set(blocks)
    try:
        yield
    finally:
        _generation.reset(tokens[0])
        _blocks.reset(tokens[1])


def generation_in_force() -> str:
    """The generation that a trace is cut for."""
    return _generation.get() or _KINDS.get(device_kind_in_force(), _DEFAULT)


def vmem_limit() -> int:
    """Bytes of VMEM that a kernel may use."""
    return GENERATIONS[generation_in_force()].vmem


def cores_in_force() -> int:
    """TensorCores that share the work of a kernel, on the generation in force."""
    return GENERATIONS[generation_in_force()].cores


def block_sizes(kernel: str) -> BlockSizes:
    """The block sizes of a kernel, on the generation in force."""
    override = _blocks.get() or {}
    return override.get(kernel) or GENERATIONS[generation_in_force()].blocks[kernel]


def candidates(kernel: str) -> list[BlockSizes]:
    """Block sizes worth trying for a kernel, for whoever tunes it."""
    if kernel not in KERNELS:
        raise ValueError(f"kernel={kernel!r} is unknown; known are {', '.join(KERNELS)}")
    return [
        BlockSizes(height, columns, chunk, unrolled)
        for unrolled in (False, True)
        for height in (128, 256, 512)
        for columns in (512, 1024, 2048, 4096)
        for chunk in (128, 256, 512, 1024, 2048)
        if chunk <= columns
    ]
