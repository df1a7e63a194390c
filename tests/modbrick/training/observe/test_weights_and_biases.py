"""Logging to Weights & Biases: by a module that stands in for it."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from modbrick.errors import InputError
from modbrick.training.observe.observer import FINISHED, Observers
from modbrick.training.observe.weights_and_biases import WeightsAndBiases
from modbrick.training.run_config import LoggingConfig
from modbrick.training.tasks.task import Evaluation

RECORD = {"step": 3, "loss": 2.5, "routers": {"a": {"layers": {"load_entropy": [0.5, 1.0]}}}}


class Page:
    """What is logged to a run; fails at what it is told to."""

    def __init__(self, fails: str = "") -> None:
        self.fails, self.seen, self.started = fails, [], {}  # type: ignore[var-annotated]

    def init(self, **options: Any) -> Page:
        self._act("init")
        self.started = options
        return self

    def log(self, numbers: dict[str, float], step: int) -> None:
        self._act("log")
        self.seen.append((step, numbers))

    def finish(self, exit_code: int) -> None:
        self._act("finish")
        self.seen.append(exit_code)

    def _act(self, name: str) -> None:
        if name == self.fails:
            raise ConnectionError("no network")


def use(monkeypatch: pytest.MonkeyPatch, page: Page) -> None:
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=page.init))


def train(workdir: Path, lines: list[str], reason: str = FINISHED) -> None:
    log = WeightsAndBiases("project", workdir, {"training": {"steps": 6}}, warn=lines.append)
    with Observers([log]) as observers:
        for step in (3, 6):
            observers.recorded({**RECORD, "step": step})
        observers.evaluated(6, Evaluation({"loss": 1.0}, {"loss": 1.0}, "text"), {})
        observers.stopped(6, reason)


def test_numbers_go_to_the_run_of_the_directory(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ids = []
    for reason, status in ((FINISHED, 0), ("SIGTERM", 1)):
        use(monkeypatch, page := Page())
        lines: list[str] = []
        train(tmp_path / "a run", lines, reason)
        numbers = {"loss": 2.5, "routers/a/layers/load_entropy/layer_0": 0.5,
                   "routers/a/layers/load_entropy/layer_1": 1.0}  # fmt: skip
        assert page.seen == [(3, numbers), (6, numbers), (6, {"evaluation/loss": 1.0}), status]
        assert lines == []
        options = page.started
        assert (options["project"], options["name"], options["resume"]) == (
            "project",
            "a run",
            "allow",
        )
        assert options["config"] == {"training": {"steps": 6}}
        ids.append(options["id"])
    assert ids[0] == ids[1], "a run that goes on has one page"


@pytest.mark.parametrize("fails", ["init", "log", "finish"])
def test_what_fails_there_is_said_once_and_stops_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fails: str
) -> None:
    use(monkeypatch, Page(fails))
    lines: list[str] = []
    train(tmp_path, lines)
    (line,) = lines
    assert line.startswith("Weights & Biases cannot be written (no network): training goes on")


def test_without_the_library_it_is_refused_by_name(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(InputError, match=r'pip install "modbrick\[wandb\]"'):
        WeightsAndBiases("project", tmp_path, {})
    assert LoggingConfig().wandb is None
