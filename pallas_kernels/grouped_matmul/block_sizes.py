"""How many rows the XLA path multiplies at once."""

from __future__ import annotations

import math

# Fractions of the mean load at which a tile height is compiled. Loads near the mean are the common
# case, so the ladder is densest there. Each height costs compile time in every branch of the loop.
_LADDER = (0.25, 0.5, 0.75, 0.875, 0.9375, 1.0, 1.0625, 1.125, 1.25, 1.5, 2.0)
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
    limit = round_up(num_slots)
    heights = {round_up(mean * fraction) for fraction in _LADDER}
    return tuple(sorted({min(height, limit) for height in heights}))
