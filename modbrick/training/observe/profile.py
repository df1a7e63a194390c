"""Profiles: what devices and host did during some steps, for XProf or TensorBoard to show."""

from __future__ import annotations

import dataclasses
import re
import tempfile
from collections.abc import Callable

import jax
from etils import epath

from modbrick.checkpoints.workdir.directory import is_local
from modbrick.errors import InputError
from modbrick.parallel.processes import is_first, say
from modbrick.paths import as_path
from modbrick.training.observe.observer import Observer
from modbrick.training.observe.outage import Outage
from modbrick.training.step import StepMetrics

DIRECTORY = "profile"


@dataclasses.dataclass(frozen=True)
class ProfiledSteps:
    """Steps to profile: from the one to the other, both included."""

    first: int
    last: int

    @classmethod
    def parse(cls, text: str | None, total: int) -> ProfiledSteps | None:
        """Reads `FIRST:LAST`; None: no profile.

        Args:
          text: as given.
          total: steps of the run.

        Raises:
          InputError: it is something else, or lies outside the run.
        """
        if text is None:
            return None
        match = re.fullmatch(r"(\d+):(\d+)", text)
        if match is None:
            raise InputError(f"--profile_steps must be FIRST:LAST, such as 10:12, got {text!r}")
        first, last = int(match[1]), int(match[2])
        if not 1 <= first <= last <= total:
            raise InputError(
                f"--profile_steps {text}: steps must ascend, from 1 to training.steps ({total})"
            )
        return cls(first, last)


class Profiler(Observer):
    """Writes a profile of some steps to `WORKDIR/profile`, by the first process.

    A start that goes on amid these steps profiles the rest of them; beyond them, none.

    Args:
      directory: of the run.
      steps: which to profile; None: none.
      warn: is handed the line about a profile that cannot be written.
    """

    def __init__(
        self,
        directory: epath.PathLike,
        steps: ProfiledSteps | None,
        warn: Callable[[str], None] = say,
    ):
        self._directory = as_path(directory) / DIRECTORY
        self._steps = steps if is_first() else None
        self._outage = Outage(self._directory, "without a profile", warn)
        self._copied: tempfile.TemporaryDirectory[str] | None = None
        self._running = False

    def step_begins(self, step: int) -> None:
        """Begins the profile if `step` is among those to profile."""
        if self._steps is None or self._running or not self._covers(step):
            return
        if not is_local(self._directory):  # the profiler knows no other file system
            self._copied = tempfile.TemporaryDirectory(prefix="profile")
        options = jax.profiler.ProfileOptions()
        options.python_tracer_level = 0  # every call of Python would hide what matters
        target = self._copied.name if self._copied else str(self._directory)
        with self._outage.survived():
            jax.profiler.start_trace(target, profiler_options=options)
            self._running = True

    def step_started(self, step: int, metrics: StepMetrics) -> None:
        """Waits for the step, and ends the profile, if it is the last to profile."""
        if self._running and self._steps is not None and step == self._steps.last:
            jax.block_until_ready(metrics)
            self.close()

    def close(self) -> None:
        """Ends and writes the profile, if one is under way."""
        if not self._running:
            return
        self._running = False
        with self._outage.survived():
            jax.profiler.stop_trace()
            if self._copied is not None:
                _copy(epath.Path(self._copied.name), self._directory)
                self._copied.cleanup()

    def _covers(self, step: int) -> bool:
        return self._steps is not None and self._steps.first <= step <= self._steps.last


def _copy(source: epath.Path, target: epath.Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for path in source.iterdir():
        if path.is_dir():
            _copy(path, target / path.name)
        else:
            path.copy(target / path.name)
