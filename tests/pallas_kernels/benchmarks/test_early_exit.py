from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import pytest

from pallas_kernels.benchmarks.early_exit import relative_times, skipped_fractions


def test_blocks_behind_a_broken_stick_are_skipped() -> None:
    # The first head takes all from a query's own key: one of 1, 2, 3 and 4 blocks is visited.
    # The second takes nothing, and the third half of it, so that half of the stick is left.
    weights = np.stack([np.eye(8), np.zeros((8, 8)), 0.5 * np.eye(8)])
    assert skipped_fractions(weights, (2, 2), 0.1) == pytest.approx([0.6, 0.0, 0.0])
    assert skipped_fractions(weights, (2, 2), 0.6) == pytest.approx([0.6, 0.0, 0.6])
    # Rows of 4 with keys of 2: of the blocks at 4, 2 and at 8, 6, 4, 2 the nearest two are visited.
    assert skipped_fractions(weights[:1], (4, 2), 0.1) == pytest.approx([1 - 4 / 6])


def test_times_are_relative_to_no_tolerance() -> None:
    calls = []

    def make(tolerance: float) -> Callable[[], float]:
        def call() -> float:
            calls.append(tolerance)
            time.sleep(0.001 if tolerance else 0.02)
            return tolerance

        return call

    found = relative_times(make, [0.1, 0.2], rounds=2)
    assert calls == [0.0, 0.1, 0.2] * 3  # once to compile, and in turn
    assert found["seconds"] >= 0.02
    assert found["speed_up"].keys() == {"0.1", "0.2"}
    assert min(found["speed_up"].values()) > 2
