"""Text out of ids as they come: no character is shown in part, and stop texts end it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from modbrick.data.tokenizers.tokenizer import Tokenizer
from modbrick.errors import InputError

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class TextStream:
    """Decodes a growing sequence of ids.

    The pieces that `push` and `close` return join to the text of all ids, up to the first stop
    text. A character whose bytes have not all come, and the front of what may become a stop text,
    are held back.

    Args:
      tokenizer: of the ids.
      context: ids before the first, whose text is not returned; some tokenizers write a token
        differently at the very beginning.
      stop: texts that end the stream; they are not returned.
    """

    def __init__(self, tokenizer: Tokenizer, context: Iterable[int] = (), stop: Sequence[str] = ()):
        if any(not text for text in stop):
            raise InputError("a stop text is empty: give it at least one character")
        self._tokenizer, self._stop = tokenizer, tuple(stop)
        self._ids = list(context)
        self._emitted = len(tokenizer.decode(self._ids))  # characters of the ids kept
        self._pending = ""  # decoded, and perhaps the front of a stop text
        self._boundary = len(self._ids)
        self.stopped = False

    def push(self, ids: Iterable[int]) -> str:
        """Takes the next ids and returns the text that they complete."""
        if self.stopped:
            return ""
        self._ids.extend(ids)
        text = self._tokenizer.decode(self._ids)
        # The last bytes of an unfinished character decode to replacement characters.
        ready = text.rstrip(REPLACEMENT)
        self._pending += ready[self._emitted :]
        self._emitted = max(self._emitted, len(ready))
        if len(ready) == len(text):
            # The ids since the last boundary stay as context, older ones are done with.
            self._ids = self._ids[self._boundary :]
            self._boundary = len(self._ids)
            self._emitted = len(self._tokenizer.decode(self._ids))
        return self._released(self._held_back())

    def close(self) -> str:
        """Returns what was held back; no id can follow."""
        if self.stopped:
            return ""
        self._pending += self._tokenizer.decode(self._ids)[self._emitted :]
        text = self._released(0)
        self.stopped = True
        return text

    def _held_back(self) -> int:
        """Returns how many of the last characters may be the front of a stop text."""
        return max(
            (
                length
                for stop in self._stop
                for length in range(1, min(len(stop) - 1, len(self._pending)) + 1)
                if self._pending.endswith(stop[:length])
            ),
            default=0,
        )

    def _released(self, held_back: int) -> str:
        found = [at for stop in self._stop if (at := self._pending.find(stop)) >= 0]
        if found:
            self.stopped = True
            return self._pending[: min(found)]
        cut = len(self._pending) - held_back
        text, self._pending = self._pending[:cut], self._pending[cut:]
        return text
