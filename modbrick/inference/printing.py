"""Several growing texts on a terminal, one after the other."""

from __future__ import annotations

from collections.abc import Sequence


class Printer:
    """Prints prompts with their continuations, the first unfinished one live.

    Args:
      prompts: what each text begins with.
    """

    def __init__(self, prompts: Sequence[str]):
        self._waiting = list(prompts)
        self._finished = [False] * len(prompts)
        self._current = 0
        self._begin()

    def write(self, index: int, text: str, last: bool) -> None:
        """Takes the next piece of a text; `last` ends it."""
        self._waiting[index] += text
        self._finished[index] = last
        if index == self._current:
            self._flush()
        while self._current < len(self._finished) and self._finished[self._current]:
            print(flush=True)
            self._current += 1
            self._begin()

    def _begin(self) -> None:
        if self._current < len(self._waiting):
            if len(self._waiting) > 1:
                print(f"--- {self._current + 1} of {len(self._waiting)}", flush=True)
            self._flush()

    def _flush(self) -> None:
        print(self._waiting[self._current], end="", flush=True)
        self._waiting[self._current] = ""
