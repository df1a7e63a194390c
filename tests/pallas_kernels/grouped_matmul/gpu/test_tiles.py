"""Every row and every tile is worked on once, and the work is spread evenly."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.grouped_matmul.gpu import tiles as module
from tests.contracts.sweep import sweep

# Of one length where it does not matter: each is compiled anew.
LOADS = {
    "even": [40, 40, 40, 40, 40],
    "empty": [0, 0, 0, 0, 0],
    "some empty": [0, 1, 0, 300, 0],
    "one takes all": [0, 517, 0, 0, 0],
    "one expert": [5],
    "many": [2] * 256,
}


_row_tiles = jax.jit(module.row_tiles, static_argnums=(1, 2), static_argnames="rest")
_balanced_shares = jax.jit(module.balanced_shares, static_argnums=(1, 2, 3, 4))
_in_bands = jax.jit(module.in_bands, static_argnums=(2, 3))


@pytest.mark.parametrize("rest", [False, True])
@pytest.mark.parametrize("loads", LOADS.values(), ids=LOADS)
def test_each_row_is_in_one_tile_of_its_expert(loads: list[int], rest: bool) -> None:
    offsets = np.concatenate([[0], np.cumsum(loads)])
    num_rows, height = 517 + 11, 64
    table = np.asarray(_row_tiles(jnp.asarray(offsets, jnp.int32), num_rows, height, rest=rest))
    count = table[module.COUNT, 0]
    assert count <= table.shape[1]
    owner = np.full(num_rows, -1)
    for expert, start, end in table[1:, :count].T:
        rows = np.arange(start, min(start + height, end))
        assert rows.size > 0
        assert (owner[rows] == -1).all()
        owner[rows] = expert
    expected = np.repeat(np.arange(len(loads)), loads)
    np.testing.assert_array_equal(owner[: offsets[-1]], expected)
    np.testing.assert_array_equal(owner[offsets[-1] :], len(loads) if rest else -1)


def test_a_forged_plan_stays_within_its_rows() -> None:
    forged = jnp.asarray([5, -9, 2**30, 12, 99], jnp.int32)
    offsets = np.asarray(module.bounded_offsets(forged, 70))
    assert offsets.tolist() == [5, 5, 70, 70, 70]
    table = np.asarray(_row_tiles(forged, 70, 64, rest=True))
    count = table[module.COUNT, 0]
    assert count <= table.shape[1]
    assert (table[module.START, :count] < 70).all()
    assert (table[module.END, :count] <= 70).all()


@pytest.mark.parametrize("loads", LOADS.values(), ids=LOADS)
@sweep(("items", "blocks"), [(1, 132), (64, 132), (7, 2)], [(64, 132), (7, 2)])
def test_shares_cover_all_tiles_and_differ_by_a_tile(
    loads: list[int], items: int, blocks: int
) -> None:
    depth, overhead = 64, 2
    order, shares = map(
        np.asarray,
        _balanced_shares(jnp.asarray(loads, jnp.int32), items, depth, overhead, blocks),
    )
    assert sorted(order.tolist()) == list(range(len(loads)))
    assert (shares[0], shares[-1]) == (0, len(loads) * items)
    assert (np.diff(shares) >= 0).all()
    cost = np.repeat([-(-loads[e] // depth) + overhead for e in order], items)
    of_block = np.add.reduceat(np.append(cost, 0), shares[:-1]) * (np.diff(shares) > 0)
    # Twice what no split could be below, and a tile where experts meet.
    assert of_block.max() <= 2 * max(cost.sum() / blocks, cost.max()) + np.median(cost)


@pytest.mark.parametrize("seed", range(3))
def test_skewed_loads_take_at_most_a_fifth_longer(seed: int) -> None:
    """32,768 rows, 32 experts, one above half of the rows, several empty; 64 tiles of a weight.

    Steps of the busiest block, of one pass over rows (8 column tiles) and one over weights.
    """
    rng = np.random.default_rng(seed)
    weights = np.append(np.zeros(8), rng.zipf(1.6, 23).astype(float))
    few = rng.multinomial(32768 * 45 // 100, weights / weights.sum())
    skewed = np.append(few, 32768 - few.sum())
    rng.shuffle(skewed)
    blocks, tiles, depth = 132, 64, 64

    def busiest(loads: np.ndarray) -> tuple[float, float]:
        row_tiles = np.sum(-(-loads // 128)) * 8
        rows = -(-row_tiles // blocks) * (1024 // depth)
        order, shares = map(
            np.asarray,
            _balanced_shares(jnp.asarray(loads, jnp.int32), tiles, depth, 2, blocks),
        )
        cost = np.repeat(-(-loads[order] // depth) + 2, tiles)
        of_block = [cost[a:b].sum() for a, b in itertools.pairwise(shares)]
        return float(rows), float(np.max(of_block))

    for skew, even in zip(busiest(skewed), busiest(np.full(32, 1024)), strict=True):
        assert skew <= 1.2 * even


@pytest.mark.parametrize("width", [1, 3, 8, 20])
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (5, 8), (4, 20), (7, 3)])
def test_bands_visit_each_tile_once(rows: int, columns: int, width: int) -> None:
    order = _in_bands(jnp.arange(rows * columns, dtype=jnp.int32), jnp.int32(rows), columns, width)
    visited = set(zip(*(np.asarray(axis).tolist() for axis in order), strict=True))
    assert visited == {(row, column) for row in range(rows) for column in range(columns)}
