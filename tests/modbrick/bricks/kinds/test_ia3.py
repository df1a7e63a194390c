from __future__ import annotations

from modbrick.bricks import IA3
from tests.contracts.brick import BrickContract


class TestIA3(BrickContract):
    settings = (IA3(), IA3())
    at_first = frozenset({"factor"})

    @staticmethod
    def formula(settings, leaves, x, y, weight):
        del settings, x
        return y * (1 + weight * (leaves["factor"] - 1))
