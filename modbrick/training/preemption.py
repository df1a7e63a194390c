"""Being asked to stop: SIGTERM (or Ctrl-C) ends a run after the step in hand, everything saved."""

from __future__ import annotations

import signal
import types

EXIT_PREEMPTED = 75  # EX_TEMPFAIL: stopped early after saving; start me again


class PreemptionGuard:
    """While entered, remembers the first SIGTERM or SIGINT instead of dying of it.

    A second one acts as it always does, so that a stuck run can still be stopped.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._previous: dict[int, object] = {}

    @property
    def requested(self) -> bool:
        """Whether the run was asked to stop."""
        return self.signal is not None

    @property
    def name(self) -> str:
        """Name of the signal that asked."""
        return self.signal.name if self.signal else "nothing"

    def __enter__(self) -> PreemptionGuard:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._previous[number] = signal.signal(number, self._remember)
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def _remember(self, number: int, frame: types.FrameType | None) -> None:
        del frame
        self.signal = signal.Signals(number)
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._previous.clear()
