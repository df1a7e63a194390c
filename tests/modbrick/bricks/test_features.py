"""Which bricks take features, and what becomes of those that get none."""

from __future__ import annotations

import numpy as np
import pytest

from modbrick.bricks import BrickConfig, Knowledge, LoRA, Modality
from modbrick.bricks.features import check_features, refuse_blind, takers
from modbrick.errors import InputError

BRICKS = {
    "german": BrickConfig(("layer.*.attention.query",), LoRA(rank=2)),
    "eye": BrickConfig(("features",), Modality(1, width=3, features="image")),
    "facts": BrickConfig(("features",), Knowledge(2, width=4)),
}


def test_modality_and_knowledge_take_features() -> None:
    assert {name: (form.features, form.width) for name, form in takers(BRICKS).items()} == {
        "eye": ("image", 3),
        "facts": ("entities", 4),
    }
    check_features(BRICKS, {"image": np.zeros((2, 5, 3)), "entities": np.zeros((2, 1, 4))})


def test_bricks_that_would_change_nothing_are_refused() -> None:
    refuse_blind({"german": BRICKS["german"]})
    with pytest.raises(InputError, match=r"bricks\.eye takes features \('image'\).*: look up$"):
        refuse_blind(BRICKS, "look up")


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"entities": None}, r"bricks\.facts takes features: f\.entities of shape \[N, P, 4\]"),
        ({"image": np.zeros((2, 5, 4))}, r"f\.image have shape \[2, 5, 4\], bricks\.eye takes"),
        ({"images": np.zeros((2, 5, 3))}, r"no brick takes features f\.images; did you mean 'im"),
    ],
)
def test_other_features_are_refused(change: dict[str, np.ndarray], complaint: str) -> None:
    given = {"image": np.zeros((2, 5, 3)), "entities": np.zeros((2, 1, 4))} | change
    with pytest.raises(InputError, match=complaint):
        check_features(BRICKS, {n: x for n, x in given.items() if x is not None}, "f.")
