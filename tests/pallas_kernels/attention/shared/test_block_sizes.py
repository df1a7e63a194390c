from __future__ import annotations

import pytest

from pallas_kernels.attention.shared.block_sizes import xla_block_sizes
from pallas_kernels.attention.stickbreaking.tpu.block_sizes import (
    GENERATIONS,
    LANES,
    candidates,
    compiling_for,
    tpu_block_sizes,
)

PASSES = ("forward", "backward")


@pytest.mark.parametrize("query_length", [1, 7, 16, 64, 500, 8192])
@pytest.mark.parametrize("key_length", [1, 15, 17, 100, 500, 1024, 8192])
def test_blocks_fit_and_stay_small(query_length: int, key_length: int) -> None:
    sizes = xla_block_sizes(query_length, key_length)
    assert 1 <= sizes.query <= query_length
    assert 1 <= sizes.key <= key_length
    assert sizes.query * sizes.key <= 2**13  # Whatever the lengths: memory is linear.
    # Whole spans of 16 keys, where there are as many.
    assert key_length <= 16 or sizes.key % 16 == 0


@pytest.mark.parametrize("generation", GENERATIONS)
@pytest.mark.parametrize("itemsize", [2, 4])
@pytest.mark.parametrize("keys", [1024, 4096])
def test_blocks_of_wide_heads_are_smaller_and_whole(
    generation: str, itemsize: int, keys: int
) -> None:
    before = None
    for width in range(32, 1025, 32):
        with compiling_for(generation):
            sizes = tpu_block_sizes(4096, keys, width, itemsize)  # Refuses what is not whole.
        areas = [blocks.query * blocks.key for blocks in (sizes.forward, sizes.backward)]
        assert before is None or all(now <= then for now, then in zip(areas, before, strict=True))
        before = areas
    assert before is not None
    assert max(before) <= 512 * 256 // (itemsize // 2)


def test_what_was_chosen_is_among_the_candidates() -> None:
    forward, backward = ([getattr(c, name) for c in candidates()] for name in PASSES)
    for generation in GENERATIONS.values():
        for choice in generation.choices:
            assert choice.blocks.forward in forward
            assert choice.blocks.backward in backward


@pytest.mark.parametrize("generation", GENERATIONS)
def test_blocks_of_short_rows_hold_no_more_keys(generation: str) -> None:
    with compiling_for(generation):
        for width in (64, 128, 256, 1024):
            short, long = (tpu_block_sizes(4096, keys, width, 2) for keys in (1024, 8192))
            assert short.forward.key <= long.forward.key
            assert short.backward.key <= long.backward.key
            assert tpu_block_sizes(100, 130, width, 2).forward.query == LANES
