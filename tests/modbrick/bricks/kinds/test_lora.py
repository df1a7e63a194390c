from __future__ import annotations

import numpy as np
import pytest

from modbrick.bricks import LoRA
from modbrick.errors import InputError
from tests.contracts.brick import BrickContract


class TestLoRA(BrickContract):
    settings = (LoRA(rank=2, alpha=6.0), LoRA(rank=3, alpha=4.0, scaling="root"))
    at_first = frozenset({"up"})

    @staticmethod
    def formula(settings, leaves, x, y, weight):
        divisor = {"rank": settings.rank, "root": np.sqrt(settings.rank)}[settings.scaling]
        return y + weight * settings.alpha / divisor * (x @ leaves["down"] @ leaves["up"])


def test_scale() -> None:
    assert LoRA(rank=4).scale == 1.0
    assert LoRA(rank=4, alpha=8.0).scale == 2.0
    assert LoRA(rank=4, alpha=8.0, scaling="root").scale == 4.0


def test_a_rank_of_nothing_is_refused() -> None:
    with pytest.raises(InputError, match="rank of a LoRA must be at least 1, got 0"):
        LoRA(rank=0)
