"""How many rows the XLA path multiplies at once."""

from __future__ import annotations

# Fractions of the mean load at which a tile height is compiled. Loads near the mean are the common
# case, so the ladder is densest there: an expert pays for at most an eighth more rows than it has
# between half and one and a half of the mean.
_LADDER = (0.125, 0.25, 0.5, 0.625, 0.75, 0.875, 1.0, 1.125, 1.25, 1.5, 2.0)
# A tile's activations should stay in the last-level cache, and taller tiles gain nothing.
_MAX_MEAN_ROWS = 512
_ROW_MULTIPLE = 8


def tile_heights(num_slots: int, num_experts: int) -> tuple[int, ...]:
    """Ascending tile heights for `num_slots` rows spread over `num_experts` experts.

    An expert with n rows runs tiles of the largest height, and one tile of the smallest height that
    holds the rest.
    """
    mean = min(max(num_slots / num_experts, 1.0), _MAX_MEAN_ROWS)
    limit = -(-num_slots // _ROW_MULTIPLE) * _ROW_MULTIPLE
    heights = {
        min(-(-int(mean * fraction) // _ROW_MULTIPLE) * _ROW_MULTIPLE or _ROW_MULTIPLE, limit)
        for fraction in _LADDER
    }
    return tuple(sorted(heights))
