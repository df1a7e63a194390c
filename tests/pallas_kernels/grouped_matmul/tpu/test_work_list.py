"""The work lists: every row of every expert once, and what two cores never share."""

from __future__ import annotations

import collections
import functools
import itertools
from typing import Any

import jax
import numpy as np
import pytest

from pallas_kernels.grouped_matmul.plan import routing_plan
from pallas_kernels.grouped_matmul.tpu.work_list import WorkList, work_list
from tests.contracts.sweep import sweep

HEIGHT = 16
# Tokens by expert, -1 for none: even, one expert for all, empty ones, no expert at all, one row.
LOADS = {
    "even": [0] * 20 + [1] * 20 + [2] * 20 + [3] * 20,
    "one": [2] * 80,
    "empty": [0] * 5 + [3] * 60,
    "unrouted": [0] * 5 + [-1] * 60,
    "nobody": [-1] * 40,
    "one tile of several": [1] * 3 + [2] * 2 + [-1] * 60,
    "single": [0],
}
EXPERTS = 5


@functools.partial(jax.jit, static_argnames=("experts", "every_row", "every_expert", "cores"))
def _work_list(slots: jax.Array, experts: int, **settings: Any) -> WorkList:
    return work_list(routing_plan(slots[:, None], experts), HEIGHT, **settings)


def _lists(work: WorkList) -> list[list[tuple[int, int]]]:
    """For each core, its (expert, tile) pairs, idle steps left out."""
    length = work.expert.shape[0] // work.cores
    pairs = list(zip(work.expert.tolist(), work.tile.tolist(), strict=True))
    return [
        pairs[core * length : core * length + int(work.count[1 + core])]
        for core in range(work.cores)
    ]


def _needed(slots: list[int], every_row: bool) -> set[tuple[int, int]]:
    order = sorted(EXPERTS if e < 0 else e for e in slots)
    owners = enumerate(order)
    return {(e, row // HEIGHT) for row, e in owners if every_row or e < EXPERTS}


@pytest.mark.parametrize("load", LOADS)
@sweep(
    ("every_row", "every_expert", "cores"),
    itertools.product([False, True], [False, True], [1, 2]),
    [(False, True, 2), (True, False, 2), (False, False, 1), (True, True, 1)],
)
def test_every_tile_of_every_expert_once(load, every_row, every_expert, cores):
    # One length where it does not matter: each is compiled anew.
    slots = LOADS[load] + [-1] * (80 - len(LOADS[load]) if len(LOADS[load]) > HEIGHT else 0)
    work = _work_list(
        np.array(slots, np.int32),
        EXPERTS,
        every_row=every_row,
        every_expert=every_expert,
        cores=cores,
    )
    lists = _lists(work)
    made = collections.Counter(pair for own in lists for pair in own)
    assert max(made.values()) == 1, "no item twice"
    assert _needed(slots, every_row) <= set(made)
    if every_expert:
        assert set(range(EXPERTS)) <= {e for e, _ in made}
    assert int(work.count[0]) == max(len(own) for own in lists) >= 1
    # A core's steps beyond its items stay where it is, so that they write nothing elsewhere.
    length = work.expert.shape[0] // work.cores
    for core, own in enumerate(lists):
        steps = slice(core * length, core * length + int(work.count[0]))
        after = set(zip(work.expert[steps].tolist(), work.tile[steps].tolist(), strict=True)) - set(
            own
        )
        assert not after if own else after == {(EXPERTS, int(work.tile[steps][0]))}
    if work.cores == 1:
        assert cores == 1 or work.tiles == 1
        assert work.partial.tolist() == [-1]
        return
    steps = slice(length, length + int(work.count[0]))
    assert not {t for _, t in lists[0]} & set(work.tile[steps].tolist()), "no tile on both cores"
    if every_expert:
        first, second = ([e for e, _ in own if e < EXPERTS] for own in lists)
        assert int(work.partial[0]) == first[-1]
        assert set(first) & set(second) == set(second[:1]) & {int(work.partial[1])}


def test_halves_are_even():
    slots = np.arange(4096, dtype=np.int32) % 8
    work = _work_list(slots, 8, every_row=False, every_expert=True, cores=2)
    assert abs(int(work.count[1] - work.count[2])) <= 1
