import math

import pytest

from modbrick.checkpoints import CheckpointConfig
from modbrick.checkpoints.retention import kept_steps

LOSSES = {10: 3.0, 20: 1.0, 30: 2.0, 40: math.nan, 50: 2.5}


def kept(newest=50, **policy):
    metrics = {step: {"loss": loss} for step, loss in LOSSES.items()}
    metrics[35] = {}  # saved without metrics
    return kept_steps(CheckpointConfig(**policy), metrics, newest)


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ({"keep_latest": 1}, {50}),
        ({"keep_latest": 3}, {35, 40, 50}),
        ({"keep_latest": 1, "keep_best": 2}, {20, 30, 50}),
        ({"keep_latest": 1, "keep_best": 2, "best_mode": "max"}, {10, 50}),
        ({"keep_latest": 1, "keep_best": 9}, {10, 20, 30, 50}),
        ({"keep_latest": 1, "keep_every": 20}, {20, 40, 50}),
        ({"keep_latest": 2, "keep_best": 1, "keep_every": 30}, {20, 30, 40, 50}),
        ({"keep_latest": 1, "keep_best": 1, "best_metric": "accuracy"}, {50}),
    ],
)
def test_keeps_the_union_of_the_policies(policy, expected):
    assert kept(**policy) == expected


def test_the_one_just_saved_is_kept_even_if_its_step_is_not_the_highest():
    assert kept(newest=20, keep_latest=1) == {20, 50}
