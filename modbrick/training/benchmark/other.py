"""Another code that trains the same case, in a process of its own, a round at a time."""

from __future__ import annotations

import dataclasses
import json
import signal
import subprocess
from collections.abc import Sequence

from modbrick.errors import InputError
from modbrick.training.benchmark.cases import Case


class OtherProcess:
    """A driver that reads one JSON object a line, `{"steps": N}`, and answers with one.

    It gets the case as its last argument, answers `{"seconds": ...}` for the steps it has done, and
    `{"peak_memory_bytes": ...}` when asked for none. Between rounds it is halted.
    """

    def __init__(self, command: Sequence[str], case: Case):
        """Starts the driver.

        Args:
          command: of the driver, but for the case.
          case: what it trains.

        Raises:
          InputError: it does not run.
        """
        self._command = list(command)
        self._process = subprocess.Popen(
            [*self._command, json.dumps(dataclasses.asdict(case))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._ask({"steps": 1})  # the first step is slower

    def _ask(self, request: dict[str, int]) -> dict[str, float]:
        assert self._process.stdin
        assert self._process.stdout
        self._process.send_signal(signal.SIGCONT)
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        # Halted, so that threads which wait in a loop take nothing from the other contender.
        self._process.send_signal(signal.SIGSTOP)
        if not answer:
            raise InputError(f"the other code in {self._command[-1]} did not run; see its message")
        return json.loads(answer)

    def train(self, steps: int) -> float:
        """Returns seconds per step."""
        return self._ask({"steps": steps})["seconds"] / steps

    def close(self) -> float:
        """Ends the process and returns its peak memory in bytes."""
        peak = self._ask({"steps": 0})["peak_memory_bytes"]
        assert self._process.stdin
        self._process.send_signal(signal.SIGCONT)
        self._process.stdin.close()
        self._process.wait()
        return peak
