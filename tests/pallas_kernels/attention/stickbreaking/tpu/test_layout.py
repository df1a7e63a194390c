"""The order of keys in HBM, and in the registers of a tile."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from pallas_kernels.attention.stickbreaking.tpu import tile
from pallas_kernels.attention.stickbreaking.tpu.forward import strips
from pallas_kernels.attention.stickbreaking.tpu.layout import (
    RUN,
    STRIP,
    SUBLANES,
    blocks_of_keys,
    keys_of_blocks,
    nearest_first,
)

BLOCK = 3 * STRIP


def test_blocks_hold_all_keys() -> None:
    key = jnp.arange(2 * 500 * 3 * 4.0).reshape(2, 500, 3, 4)
    blocks = blocks_of_keys(key, BLOCK)
    assert blocks.shape == (2, 3, 2, BLOCK, 4)
    np.testing.assert_array_equal(keys_of_blocks(blocks, 500), key)


def test_registers_hold_keys_from_the_nearest_on() -> None:
    position = jnp.arange(1.0 * BLOCK).reshape(1, BLOCK, 1, 1)
    stored = blocks_of_keys(position, BLOCK)[0, 0, 0]
    read = nearest_first(stored)
    sublane, register = np.meshgrid(np.arange(SUBLANES), np.arange(RUN))
    for number, (place, place_in_hbm) in enumerate(strips(BLOCK)):
        registers = tile.registers(read[place])
        farthest = BLOCK - (number + 1) * STRIP
        expected = farthest + RUN * sublane + RUN - 1 - register
        np.testing.assert_array_equal(registers[..., 0], expected)
        back = tile.as_stored(registers, jnp.float32)
        np.testing.assert_array_equal(back, stored[place_in_hbm])


def test_bounds_let_through_what_is_seen() -> None:
    start, last, first = (
        1000,
        jnp.asarray([[999, 1000, 1050, 2000]]),
        jnp.asarray([[0, 0, 1040, 0]]),
    )
    query_ids = jnp.asarray([[0, 0, 1, 1]])
    ids = np.arange(STRIP) // 45
    bounds = tile.bounds_of_strip(
        jnp.int32(start), last, first, query_ids, jnp.asarray(ids.reshape(SUBLANES, RUN)[:, ::-1])
    )
    sublane, register = np.meshgrid(np.arange(SUBLANES), np.arange(RUN))
    key = (RUN * sublane + RUN - 1 - register).reshape(STRIP, 1)
    seen = (start + key <= last) & (start + key >= first) & (ids[key] == query_ids)
    np.testing.assert_array_equal(bounds, np.where(seen, tile.LARGEST_LOGIT, -np.inf))
    assert seen.any(axis=0).tolist() == [False, True, True, True]
