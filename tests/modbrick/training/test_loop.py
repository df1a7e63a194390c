"""The loop with a task that is none of the library's: what it says, saves, and goes on from."""

from __future__ import annotations

import dataclasses
import os
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import chex
import pytest

from modbrick.checkpoints import describe
from modbrick.config.families import dense
from modbrick.data import DataConfig
from modbrick.execution import ExecutionConfig
from modbrick.objective import ObjectiveConfig
from modbrick.training import program
from modbrick.training.observe.metrics import read_metrics
from modbrick.training.observe.observer import FINISHED, Activity, Observer
from modbrick.training.observe.timeline import read_timeline
from modbrick.training.step import StepMetrics
from modbrick.training.tasks.task import Evaluation
from tests.configs import tiny
from tests.modbrick.training.run_in_process import parameters, run, without_rates
from tests.modbrick.training.tasks.regression import Regression

STEPS = 8
pytestmark = pytest.mark.usefixtures("quick_compilation")
_TINY = tiny.get_config()
CONFIG = dataclasses.replace(
    _TINY,
    data=DataConfig(path="", sequence_length=16, batch_size=4),
    model=dense(vocabulary=64, width=16, layers=1, heads=2, feed_forward_width=16, dtype="float32"),
    training=dataclasses.replace(_TINY.training, steps=STEPS),
    execution=ExecutionConfig(attention="reference"),
    objective=ObjectiveConfig(),
    logging=dataclasses.replace(_TINY.logging, every=1),
    evaluation=dataclasses.replace(_TINY.evaluation, every=3),
    checkpoint=dataclasses.replace(
        _TINY.checkpoint, every=3, keep_latest=1, keep_best=1, best_metric="error"
    ),
)


class Diary(Observer):
    """Writes down the events that it is notified of."""

    def __init__(self, act: Mapping[tuple[str, int], Any] = {}) -> None:
        self.seen: list[tuple[str, int]] = []
        self.closed = 0
        self._act = act

    def _note(self, event: str, step: int) -> None:
        self.seen.append((event, step))
        if (event, step) in self._act:
            self._act[event, step]()

    def step_begins(self, step: int) -> None:
        self._note("begins", step)

    def step_started(self, step: int, metrics: StepMetrics) -> None:
        assert float(metrics.weight) == CONFIG.data.batch_size
        self._note("started", step)

    def spent(self, activity: Activity, seconds: float) -> None:
        assert seconds >= 0
        if activity != "data_wait":
            self._note(activity, 0)

    def recorded(self, record: Mapping[str, Any]) -> None:
        self._note("recorded", record["step"])

    def evaluated(self, step: int, evaluation: Evaluation, parameters: Any) -> None:
        assert "embedding" in parameters
        assert evaluation.text.startswith("error")
        self._note("evaluated", step)

    def saved(self, step: int) -> None:
        self._note("saved", step)

    def stopped(self, step: int, reason: str) -> None:
        self._note(reason, step)

    def close(self) -> None:
        self.closed += 1


@pytest.fixture(scope="module", autouse=True)
def traced_once() -> Iterator[None]:
    """The step of every run is traced once, however the run goes on."""
    make = program.train_step

    def counted(*arguments: Any, **options: Any) -> Any:
        chex.clear_trace_counter()  # chex counts by the place in the source, not by the function
        return chex.assert_max_traces(make(*arguments, **options), n=1)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(program, "train_step", counted)
        yield
    chex.clear_trace_counter()


@pytest.fixture(scope="module")
def whole(traced_once: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Diary]:
    """A run that nothing happened to, and the events that its observer saw."""
    workdir, diary = tmp_path_factory.mktemp("runs") / "whole", Diary()
    assert run(CONFIG, Regression, workdir, [diary]) == FINISHED
    return workdir, diary


def assert_same_run(workdir: Path, other: Path) -> None:
    chex.assert_trees_all_equal(parameters(workdir), parameters(other))
    assert without_rates(read_metrics(str(workdir))) == without_rates(read_metrics(str(other)))
    assert describe(workdir).metadata == describe(other).metadata


def test_a_task_of_ones_own_trains_and_says_so_in_its_own_words(
    whole: tuple[Path, Diary],
) -> None:
    workdir, _ = whole
    records = read_metrics(str(workdir))
    trained = [record for record in records if "squared_error" in record]
    assert [record["step"] for record in trained] == list(range(1, STEPS + 1))
    assert "next_token" not in trained[0]
    for record in trained:
        # The mean of squares is no less than the square of the mean; both over the same batch.
        assert record["absolute_error"] ** 2 <= record["squared_error"] * 1.0001
        assert record["loss"] == record["squared_error"]
    assert trained[-1]["squared_error"] < trained[0]["squared_error"]
    errors = {r["step"]: r["evaluation"]["error"] for r in records if "evaluation" in r}
    assert list(errors) == [3, 6, 8]
    described = describe(workdir)
    assert described.metadata.run["task"] == "regression"
    assert described.metadata.data == {"row": 4 * STEPS}
    assert described.metrics == {"error": errors[8]}
    kept = {int(path.name) for path in (workdir / "checkpoints").iterdir()}
    assert kept == {8, min(errors, key=lambda step: errors[step])}
    assert not (workdir / "tokenizer").exists()


def test_an_observer_is_told_everything_in_order(whole: tuple[Path, Diary]) -> None:
    _, diary = whole
    first = diary.seen.index(("begins", 3))
    assert diary.seen[first : first + 7] == [
        ("begins", 3),
        ("started", 3),
        ("recorded", 3),
        ("evaluated", 3),
        ("evaluation", 0),
        ("checkpoint", 0),
        ("saved", 3),
    ]
    assert diary.seen[-7:] == [
        ("recorded", 8),
        ("evaluated", 8),
        ("evaluation", 0),
        ("checkpoint", 0),
        ("saved", 8),
        ("checkpoint", 0),
        (FINISHED, 8),
    ]
    assert diary.closed == 1


def test_stopped_and_started_again_the_run_is_the_same_to_the_bit(
    whole: tuple[Path, Diary], tmp_path: Path
) -> None:
    stop = Diary({("started", 5): lambda: os.kill(os.getpid(), signal.SIGTERM)})
    assert run(CONFIG, Regression, tmp_path, [stop]) == "SIGTERM"
    assert stop.seen[-1] == ("SIGTERM", 5)
    assert describe(tmp_path).step == 5
    assert run(CONFIG, Regression, tmp_path) == FINISHED
    assert_same_run(tmp_path, whole[0])
    ends = [r["reason"] for r in read_timeline(tmp_path) if r["event"] == "stop"]
    assert ends == ["SIGTERM", FINISHED]


def test_a_signal_before_the_last_evaluation_leaves_it_to_the_next_start(
    whole: tuple[Path, Diary], tmp_path: Path
) -> None:
    stop = Diary({("recorded", STEPS): lambda: os.kill(os.getpid(), signal.SIGTERM)})
    assert run(CONFIG, Regression, tmp_path, [stop]) == "SIGTERM"
    assert describe(tmp_path).metrics == {}
    again = Diary()
    assert run(CONFIG, Regression, tmp_path, [again]) == FINISHED
    assert [event for event in again.seen if event[1]] == [("evaluated", 8), (FINISHED, 8)]
    assert without_rates(read_metrics(str(tmp_path))) == without_rates(read_metrics(str(whole[0])))


def test_an_error_closes_the_observers_and_leaves_the_checkpoints_before_it(
    tmp_path: Path,
) -> None:
    def fail() -> None:
        raise RuntimeError("out of paper")

    first, last = Diary(), Diary({("begins", 5): fail})
    with pytest.raises(RuntimeError, match="out of paper"):
        run(CONFIG, Regression, tmp_path, [first, last])
    assert (first.closed, last.closed) == (1, 1)
    assert describe(tmp_path).step == 3


def test_microbatches_add_up_for_any_task(whole: tuple[Path, Diary], tmp_path: Path) -> None:
    config = dataclasses.replace(
        CONFIG, training=dataclasses.replace(CONFIG.training, microbatches=2)
    )
    assert run(config, Regression, tmp_path, allow_change=["training"]) == FINISHED
    for ours, theirs in zip(read_metrics(str(tmp_path)), read_metrics(str(whole[0])), strict=True):
        for name in ("squared_error", "absolute_error"):
            if name in ours:
                assert ours[name] == pytest.approx(theirs[name], rel=1e-3)
