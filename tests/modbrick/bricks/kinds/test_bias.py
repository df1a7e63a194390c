from __future__ import annotations

from modbrick.bricks import Bias
from tests.contracts.brick import BrickContract


class TestBias(BrickContract):
    settings = (Bias(), Bias(strength=-2.0))
    at_first = frozenset({"bias"})

    @staticmethod
    def formula(settings, leaves, x, y, weight):
        del x
        return y + weight * settings.strength * leaves["bias"]
