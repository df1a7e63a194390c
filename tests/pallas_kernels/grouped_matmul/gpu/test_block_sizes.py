"""Block sizes keep to what a multiprocessor has."""

from __future__ import annotations

import itertools

import pytest

from pallas_kernels.grouped_matmul.gpu.block_sizes import (
    CONSUMER_REGISTERS,
    CONSUMERS,
    PRODUCER_REGISTERS,
    SHARED_MEMORY,
    STAGING_PADDING,
    Blocks,
    row_blocks,
    weight_gradient_blocks,
)

WIDTHS = [64, 128, 192, 256, 1024, 14336]


@pytest.mark.parametrize(("width", "output"), list(itertools.product(WIDTHS, [2, 4])))
def test_buffers_fit_into_shared_memory(width: int, output: int) -> None:
    kinds: tuple[dict[str, int], ...] = (
        {},
        {"banks": 2, "outputs": 3},
        {"outputs": 3, "beside": 2},
        {"outputs": 2},
    )
    for kind in kinds:
        blocks, banks = row_blocks(width, 2, output, **kind), kind.get("banks", 1)
        ring = blocks.stages * blocks.depth * (blocks.rows + banks * blocks.columns) * 2
        staged = blocks.rows * (blocks.staged_columns + STAGING_PADDING) * output
        assert ring + blocks.staging_buffers * staged + 16 * blocks.stages <= SHARED_MEMORY
        assert blocks.staging_buffers >= kind.get("outputs", 1)
        assert blocks.columns * banks <= 256  # registers of the accumulators
        if "beside" in kind:
            assert width % blocks.columns == 0
    blocks = weight_gradient_blocks(width, 2, output)
    ring = blocks.stages * blocks.depth * (blocks.rows + blocks.columns) * 2
    staged = blocks.rows * blocks.staged_columns * output
    assert ring + blocks.staging_buffers * staged + 16 * blocks.stages <= SHARED_MEMORY


def test_warpgroups_share_the_registers() -> None:
    assert 128 * (CONSUMERS * CONSUMER_REGISTERS + PRODUCER_REGISTERS) <= 65536


@pytest.mark.parametrize("in_flight", [0, 3])
def test_a_ring_that_would_wait_for_itself_is_refused(in_flight: int) -> None:
    with pytest.raises(ValueError, match=f"reads_in_flight={in_flight} must lie"):
        Blocks(128, 256, 64, 4, in_flight, 8, 128, 2, 128)
    with pytest.raises(ValueError, match="columns=192 must be a multiple of staged_columns=128"):
        Blocks(128, 192, 64, 4, 2, 8, 128, 2, 128)
