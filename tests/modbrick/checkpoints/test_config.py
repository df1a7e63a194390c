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


@pytest.mark.parametrize(
    ("checkpoint", "evaluation"), [(10, 10), (20, 10), (0, 7), (0, 0), (10, 1)]
)
def test_the_best_are_kept_where_checkpoints_are_measured(checkpoint, evaluation):
    CheckpointConfig(every=checkpoint, keep_best=1).require_evaluations(evaluation)


@pytest.mark.parametrize(("checkpoint", "evaluation"), [(10, 20), (10, 0), (10, 3)])
def test_keeping_the_best_of_what_is_not_measured_is_refused(checkpoint, evaluation):
    with pytest.raises(InputError, match=r"keep_best 2 .*a multiple of evaluation\.every"):
        CheckpointConfig(every=checkpoint, keep_best=2).require_evaluations(evaluation)
    CheckpointConfig(every=checkpoint).require_evaluations(evaluation)


def test_a_metric_that_is_not_measured_is_refused_with_the_nearest():
    config = CheckpointConfig(keep_best=1, best_metric="perplexty")
    with pytest.raises(InputError, match="'perplexty' is not measured; did you mean 'perplexity'"):
        config.require_metric(["loss", "perplexity"])
    CheckpointConfig(best_metric="perplexty").require_metric(["loss"])
