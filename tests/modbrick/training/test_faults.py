"""Whole runs on a disk that fails: one line, the last state whole, never a hang."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path

import pytest

from modbrick.checkpoints import describe, load_checkpoint
from modbrick.errors import InputError
from modbrick.training.observe.observer import FINISHED, Observer
from modbrick.training.observe.profile import ProfiledSteps, Profiler
from tests.faults import FAULTS, broken
from tests.modbrick.training.observe.steps import step_metrics
from tests.modbrick.training.run_in_process import run
from tests.modbrick.training.tasks.regression import Regression
from tests.modbrick.training.test_loop import CONFIG

pytestmark = [pytest.mark.usefixtures("quick_compilation"), pytest.mark.timeout(90)]
RUN = dataclasses.replace(
    CONFIG,
    checkpoint=dataclasses.replace(CONFIG.checkpoint, keep_latest=2, asynchronous=False),
    logging=dataclasses.replace(CONFIG.logging, tensorboard=True),
)


class Breaks(Observer):
    """Lets a disk fail from a step on."""

    def __init__(self, workdir: Path, fault: str, step: int) -> None:
        self._workdir, self._fault, self._step = workdir, fault, step
        self.open = contextlib.ExitStack()

    def step_started(self, step: int, metrics: object) -> None:
        if step == self._step:
            self.open.enter_context(broken(self._workdir, self._fault))


@pytest.mark.parametrize("fault", FAULTS)
def test_a_disk_that_fails_amid_a_run_leaves_the_last_state_whole(
    tmp_path: Path, fault: str, capfd: pytest.CaptureFixture[str]
) -> None:
    workdir = tmp_path / "run"
    breaks = Breaks(workdir, fault, step=4)
    lines: list[str] = []
    with breaks.open:
        try:
            assert run(RUN, Regression, workdir, [breaks]) == FINISHED
        except InputError as error:
            lines = str(error).splitlines()
    shown = capfd.readouterr()
    assert "Traceback" not in shown.out + shown.err
    said = [line for line in shown.out.splitlines() if "cannot be written" in line]
    assert len(said) == len({line.split(" cannot")[0] for line in said}), "each once"
    if fault == "vanished":
        assert lines == [] or len(lines) == 1
        return
    assert len(lines) == 1, "the checkpoint after it cannot be written, and that is said"
    assert lines[0].startswith("checkpoint 6 could not be written to")
    assert describe(workdir).step == 3
    load_checkpoint(workdir)
    assert run(RUN, Regression, workdir) == FINISHED, "with room again, it goes on"
    assert describe(workdir).step == 8


@pytest.mark.parametrize("fault", ["no permission", "read-only", "no space"])
def test_a_profile_that_cannot_be_written_stops_nothing(
    tmp_path: Path, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **options: object) -> None:
        with broken(tmp_path, fault):
            (tmp_path / "profile").mkdir()

    monkeypatch.setattr("jax.profiler.start_trace", lambda *_, **options: None)
    monkeypatch.setattr("jax.profiler.stop_trace", fails)
    lines: list[str] = []
    with Profiler(tmp_path, ProfiledSteps(2, 3), lines.append) as profiler:
        for step in (1, 2, 3, 4):
            profiler.step_begins(step)
            profiler.step_started(step, step_metrics())
    (line,) = lines
    assert "profile cannot be written (" in line
    assert line.endswith("training goes on, without a profile")
    monkeypatch.setattr("jax.profiler.start_trace", fails)
    with Profiler(tmp_path, ProfiledSteps(1, 1), lines.append) as profiler:
        profiler.step_begins(1)
    assert len(lines) == 2
