from __future__ import annotations

import numpy as np

from modbrick.bricks import NormTuning
from modbrick.decoder.sites import Site
from tests.contracts.brick import BrickContract

SITE = Site("attention_norm", 5, 5, hook="norm")


class TestNormTuning(BrickContract):
    settings = (NormTuning(), NormTuning())
    site = SITE
    at_first = frozenset({"scale"})

    @staticmethod
    def formula(settings, leaves, x, y, weight):
        del settings
        return y + weight * x * leaves["scale"]

    def test_slots_of_experts_are_changed_alike(self) -> None:
        """Heads are, each by its own normalised values."""
        bank = self.bank([self.values(0), self.values(1)])
        x, y = (np.stack([a, 2 * a], axis=2) for a in self.tokens())
        found = self.applied(bank, x, y, None)
        for head in range(2):
            alone = self.applied(bank, x[:, :, head], y[:, :, head], None)
            np.testing.assert_allclose(found[:, :, head], alone, rtol=1e-5, atol=1e-5)


class TestNormTuningWithBias(TestNormTuning):
    settings = (NormTuning(bias=True), NormTuning(bias=True))
    at_first = frozenset({"scale", "bias"})

    @staticmethod
    def formula(settings, leaves, x, y, weight):
        del settings
        return y + weight * (x * leaves["scale"] + leaves["bias"])
