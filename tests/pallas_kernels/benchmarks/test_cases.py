from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from pallas_kernels.benchmarks.cases import EXPERT_CASES, AttentionCase


@pytest.mark.parametrize("name", EXPERT_CASES)
def test_loads_are_what_they_are_called(name: str) -> None:
    case = dataclasses.replace(EXPERT_CASES[name], tokens=4096, width=1, hidden=1)
    indices = case.expert_indices(seed=3)
    assert indices.shape == (4096, case.experts_per_token)
    counts = np.bincount(indices.ravel(), minlength=case.experts)
    if case.load == "zipf":
        assert counts[0] > case.slots / 2
        assert (counts == 0).sum() >= case.experts // 4
        assert counts[1] > counts[10]
    else:
        assert counts.max() < 1.3 * counts.mean()
        assert all(len(set(row)) == len(row) for row in indices.tolist())
    np.testing.assert_array_equal(indices, case.expert_indices(seed=3))
    assert (indices != case.expert_indices(seed=4)).any()


def test_useful_operations() -> None:
    case = EXPERT_CASES["molm"]
    assert case.flops == 2 * 2 * 32768 * 1024 * 2048
    attention = AttentionCase("a", batch=2, length=256, heads=3, width=4)
    # Blocks (0,0), (1,0) and (1,1) of each head.
    assert attention.pairs == 2 * 3 * 3
    assert attention.flops == 2 * 2 * 2 * 3 * 4 * (256 * 257 // 2)


def test_unknown_kinds_and_loads_are_named() -> None:
    case = EXPERT_CASES["molm"]
    with pytest.raises(ValueError, match="kind='dense'"):
        dataclasses.replace(case, kind="dense")
    with pytest.raises(ValueError, match="load='heavy'"):
        dataclasses.replace(case, load="heavy")
