"""Number of rows that the CPU path multiplies at once."""

from __future__ import annotations

import bisect
import math

# Fractions of the mean load at which a tile height is compiled: the more, the fewer surplus rows
# are multiplied, and the longer it compiles (each height is a branch; 11 of them took 2.4 s for a
# feed-forward layer and its gradient on two cores). Small tiles gain little from a dense ladder.
# Keyed by the smallest mean load that a ladder is for.
_LADDERS = {
    0: (0.5, 1.0, 2.0),
    32: (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0),
    64: (0.25, 0.5, 0.75, 0.875, 0.9375, 1.0, 1.0625, 1.125, 1.25, 1.5, 2.0),
}
# Up to this many rows in all, compile time is what counts: two heights, the taller for everything.
_FEW_ROWS = 256
# A tile's activations should stay in the last-level cache, and taller tiles gain nothing.
_MAX_MEAN_ROWS = 512
_ROW_MULTIPLE = 8


def tile_heights(num_slots: int, num_experts: int) -> tuple[int, ...]:
    """Ascending tile heights for `num_slots` rows spread over `num_experts` experts.

    An expert with n rows runs tiles of the largest height, and one tile of the smallest height that
    holds the rest.
    """

    def round_up(rows: float) -> int:
        return max(math.ceil(rows / _ROW_MULTIPLE), 1) * _ROW_MULTIPLE

    mean = min(num_slots / num_experts, _MAX_MEAN_ROWS)
    starts = sorted(_LADDERS)
    ladder = _LADDERS[starts[bisect.bisect_right(starts, mean) - 1]]
    limit = round_up(num_slots)
    if num_slots <= _FEW_ROWS:
        return tuple(sorted({min(round_up(2 * mean), limit), limit}))
    return tuple(sorted({min(round_up(mean * fraction), limit) for fraction in ladder}))
