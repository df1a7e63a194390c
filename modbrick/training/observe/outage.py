"""Logs that cannot be written: said once, and training goes on without them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from etils import epath

from modbrick.parallel.processes import say


class Outage:
    """Says once that a log cannot be written.

    Args:
      path: of the log, or its name.
      lost: what is lost by it, for the message.
      warn: is handed the line.
    """

    def __init__(self, path: epath.Path | str, lost: str, warn: Callable[[str], None] = say):
        self._path, self._lost, self._warn = path, lost, warn
        self.began = False

    @contextlib.contextmanager
    def survived(self) -> Iterator[None]:
        """Lets nothing but writing the log happen inside; that may fail."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - remote stores raise errors of their own kinds
            if not self.began:
                self.began = True
                reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
                self._warn(
                    f"{self._path} cannot be written ({reason}): training goes on, {self._lost}"
                )
