"""Block sizes that a trace takes."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import pytest

from pallas_kernels.grouped_matmul.tpu.block_sizes import (
    GENERATIONS,
    KERNELS,
    BlockSizes,
    block_sizes,
    candidates,
    compiling_for,
    generation_in_force,
    vmem_limit,
)
from pallas_kernels.grouped_matmul.tpu.matmul import Chunks, column_blocks
from pallas_kernels.grouped_matmul.tpu.weight_stationary import Footprint


def _on(kind: str):
    device = jax.sharding.AbstractDevice(kind, 1, platform="tpu")
    return jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), (), abstract_device=device))


@pytest.mark.parametrize(
    ("kind", "generation"),
    [("TPU v5 lite", "v5e"), ("TPU v5", "v5p"), ("TPU v6 lite", "v6e"), ("TPU7x", "tpu7x")],
)
def test_the_device_in_force_decides(kind, generation):
    with _on(kind):
        assert generation_in_force() == generation
        assert vmem_limit() == GENERATIONS[generation].vmem
        for kernel in KERNELS:
            assert block_sizes(kernel) == GENERATIONS[generation].blocks[kernel]


def test_a_context_overrides_generation_and_blocks():
    mine = BlockSizes(64, 1024, 128)
    with _on("TPU v5"), compiling_for("v6e", {"weights": mine}):
        assert generation_in_force() == "v6e"
        assert block_sizes("weights") == mine
        assert block_sizes("matmul") == GENERATIONS["v6e"].blocks["matmul"]
    with _on("TPU v5"):
        assert generation_in_force() == "v5p"


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="generation='v1' is unknown; known are 'v5e'"):
        compiling_for("v1").__enter__()
    with pytest.raises(ValueError, match="blocks='up' is no kernel; known are 'matmul'"):
        compiling_for(blocks={"up": BlockSizes()}).__enter__()
    for sizes, words in (((12,), r"height .* 12"), ((256, 100), r"columns .* 100")):
        with pytest.raises(ValueError, match=words):
            BlockSizes(*sizes)
    with pytest.raises(ValueError, match="kernel='up' is unknown"):
        candidates("up")


@pytest.mark.parametrize("kernel", KERNELS)
def test_what_is_chosen_is_among_the_candidates(kernel):
    for generation in GENERATIONS.values():
        assert generation.blocks[kernel] in candidates(kernel)


@pytest.mark.parametrize("width", [20, 1024, 1100, 2500, 4096, 14336])
@pytest.mark.parametrize("most", [1024, 2048])
def test_column_blocks_cover_the_fetched_row_exactly(width, most):
    block = column_blocks(width, most)
    assert block <= max(most, 1024)
    padded = -(-width // 1024) * 1024
    assert block == width or padded % block == 0


@pytest.mark.parametrize("width", [33, 384, 2048])
def test_chunks_divide_the_block_and_parts_the_tile(width):
    chunks = Chunks.of(width, BlockSizes(256, 2048, 512), 256, 1024)
    assert chunks.iterations * chunks.size == width
    assert 256 % chunks.parts == 0
    assert chunks.parts in (1, chunks.iterations)


@pytest.mark.parametrize(
    ("width", "hidden", "fits"), [(1024, 2048, True), (2048, 1024, True), (4096, 14336, False)]
)
def test_which_experts_stay_in_memory(width, hidden, fits):
    banks: Any = (
        jax.ShapeDtypeStruct((8, hidden, width), jnp.bfloat16),
        jax.ShapeDtypeStruct((8, width, hidden), jnp.bfloat16),
    )
    for generation in GENERATIONS.values():
        sizes = generation.blocks["feed_forward_gradient"]
        needed = Footprint.of(banks, width, jnp.bfloat16, sizes.height, sizes.chunk, backward=True)
        assert (needed.buffers(generation.vmem) is not None) == fits
