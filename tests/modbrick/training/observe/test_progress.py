"""Progress of a run, as it is shown."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from modbrick.training.evaluation import DomainResult, EvaluationResult
from modbrick.training.observe.observer import FINISHED
from modbrick.training.observe.progress import SECONDS_BETWEEN_LINES, TrainingProgress
from modbrick.training.tasks.task import Evaluation
from tests.modbrick.training.observe.steps import step_metrics

_FOUND = EvaluationResult(DomainResult(1.5, 4.48, 2.25, 1100, 90, 3, 2300, 7), {}, {})
RESULT = Evaluation({"loss": 1.5}, _FOUND.to_mapping(), _FOUND.summary())


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """No terminal, and a clock that moves only when it is set."""
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    clock = SimpleNamespace(now=1000.0)
    clock.monotonic = lambda: clock.now
    monkeypatch.setattr("modbrick.training.observe.progress.time", clock)
    return clock


def record(step: int, skipped: int = 0, dropped: float = 0.0) -> dict[str, Any]:
    return {
        "step": step,
        "next_token": 2.3456,
        "tokens_per_second": 12345.6,
        "utilisation": 0.25,
        "skipped_updates": skipped,
        "dropped_choices": dropped,
    }


def test_elsewhere_than_on_a_terminal_lines_are_plain(capsys: pytest.CaptureFixture[str]) -> None:
    with TrainingProgress(20, 0) as progress:
        progress.step_started(1, step_metrics())
        progress.recorded(record(1, skipped=2, dropped=1234.0))
        progress.evaluated(1, RESULT, {})
        progress.message("[bold]as it is[/bold]")
        progress.stopped(7, "SIGTERM")
        progress.stopped(20, FINISHED)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err == (
        "step 1/20  loss 2.346  12,346 tokens/s  utilisation 25%  skipped 2  dropped 1,234\n"
        "step 1  held out: loss 1.500, perplexity 4.48, 2.250 bits per byte "
        "(1,100 of 2,300 tokens, out of 3 of 7 documents)\n"
        "[bold]as it is[/bold]\n"
        "stopped by SIGTERM: saved step 7 of 20\n"
    )


def test_plain_lines_are_few_but_the_last_step_has_one(
    capsys: pytest.CaptureFixture[str], clock: SimpleNamespace
) -> None:
    with TrainingProgress(20, 0) as progress:
        for step in range(1, 21):
            progress.step_started(step, step_metrics())
            progress.recorded(record(step))
            clock.now += SECONDS_BETWEEN_LINES / 8
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[1] for line in lines] == ["1/20", "9/20", "17/20", "20/20"]


def test_none_is_silent(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for terminal in ("0", "1"):
        monkeypatch.setenv("TTY_COMPATIBLE", terminal)
        with TrainingProgress(20, 0, "none") as progress:
            progress.step_started(1, step_metrics())
            progress.recorded(record(20))
            progress.evaluated(1, RESULT, {})
            progress.message("text")
    assert capsys.readouterr() == ("", "")


def test_a_terminal_gets_a_bar_that_lines_do_not_disturb(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "150")
    with TrainingProgress(20, 5) as progress:
        progress.step_started(7, step_metrics())
        progress.recorded(record(7))
        progress.message("[bold]as it is[/bold]")
    shown = capsys.readouterr().err
    assert "7/20" in shown
    assert "12,346 tokens/s" in shown
    assert "[bold]as it is[/bold]" in shown


def test_the_loss_shown_is_the_one_of_the_task(capsys: pytest.CaptureFixture[str]) -> None:
    with TrainingProgress(20, 0, loss_name="preference") as progress:
        progress.recorded({**record(20), "preference": 0.6931})
    assert "loss 0.693 " in capsys.readouterr().err
