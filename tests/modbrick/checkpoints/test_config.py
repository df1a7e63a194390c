import pytest

from modbrick.checkpoints import CheckpointConfig
from modbrick.errors import InputError
from modbrick.schema import from_mapping, to_mapping


def test_reads_back_from_plain_data():
    config = CheckpointConfig(every=7, keep_best=2, best_metric="accuracy", best_mode="max")
    assert from_mapping(CheckpointConfig, to_mapping(config)) == config


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"every": -1}, "every"),
        ({"keep_latest": 0}, "keep_latest"),
        ({"keep_best": -1}, "keep_best"),
        ({"keep_every": -2}, "keep_every"),
        ({"best_mode": "least"}, "least"),
        ({"keep_best": 1, "best_metric": ""}, "best_metric"),
        ({"keep_lastest": 3}, "keep_latest"),
    ],
)
def test_refuses_what_makes_no_sense_by_name(change, named):
    with pytest.raises(InputError, match=named):
        from_mapping(CheckpointConfig, change)


def test_due_at_multiples_only_and_never_before_the_first_step():
    assert [s for s in range(8) if CheckpointConfig(every=3).due(s)] == [3, 6]
    assert not any(CheckpointConfig(every=0).due(s) for s in range(8))
