"""Profiles of some steps: which, where they go, and what is refused."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from etils import epath

from modbrick.errors import InputError
from modbrick.training.observe.profile import ProfiledSteps, Profiler
from tests import remote_store
from tests.modbrick.training.observe.steps import step_metrics


@pytest.mark.parametrize(
    ("text", "named"),
    [("10", "FIRST:LAST"), ("a:b", "'a:b'"), ("1:2:3", "1:2:3"), ("-1:2", "-1:2"), ("", "''")]
    + [
        (text, f"{text}: steps must ascend, from 1 to .* \\(20\\)")
        for text in ("0:1", "3:2", "20:21")
    ],
)
def test_what_names_no_steps_is_refused(text: str, named: str) -> None:
    with pytest.raises(InputError, match=named):
        ProfiledSteps.parse(text, 20)


def test_steps_are_read() -> None:
    assert ProfiledSteps.parse("3:20", 20) == ProfiledSteps(3, 20)
    assert ProfiledSteps.parse(None, 20) is None


def profiled(monkeypatch: pytest.MonkeyPatch, start: int, until: int) -> list[tuple[str, int]]:
    """Steps that begin and end a profile of 3 to 5, in a run from one step to another."""
    seen: list[tuple[str, int]] = []
    step = start
    monkeypatch.setattr(jax.profiler, "start_trace", lambda *_, **__: seen.append(("start", step)))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: seen.append(("stop", step)))
    with Profiler("nowhere", ProfiledSteps(3, 5)) as profiler:
        for step in range(start, until + 1):
            profiler.step_begins(step)
            profiler.step_started(step, step_metrics())
    return seen


@pytest.mark.parametrize(
    ("start", "until", "expected"),
    [
        (1, 9, [("start", 3), ("stop", 5)]),
        (4, 9, [("start", 4), ("stop", 5)]),  # goes on amid them
        (6, 9, []),  # beyond them
        (1, 4, [("start", 3), ("stop", 4)]),  # interrupted
    ],
)
def test_just_these_steps_are_profiled(
    monkeypatch: pytest.MonkeyPatch, start: int, until: int, expected: list[tuple[str, int]]
) -> None:
    assert profiled(monkeypatch, start, until) == expected


@pytest.mark.parametrize("remote", [False, True])
def test_a_profile_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, remote: bool
) -> None:
    directory = remote_store.install(monkeypatch) if remote else epath.Path(tmp_path)
    with Profiler(directory, ProfiledSteps(2, 2)) as profiler:
        for step in (1, 2, 3):
            profiler.step_begins(step)
            profiler.step_started(step, step_metrics(float(jnp.ones(8) @ jnp.ones(8))))
    (time,) = (directory / "profile" / "plugins" / "profile").iterdir()
    (trace,) = [path for path in time.iterdir() if path.name.endswith(".xplane.pb")]
    assert trace.stat().length > 0
