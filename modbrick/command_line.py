"""How scripts start and end: flags in, one clear line for what a user can mend, an exit status."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Sequence

from absl import app, flags

from modbrick.errors import InputError

BAD_INPUT = 2
INTERRUPTED = 128 + signal.SIGINT


def run(main: Callable[[Sequence[str]], int | None], *, positional: str | None = None) -> None:
    """Parses flags, runs `main(argv)` and exits.

    Exit status: what `main` returns (None: 0); 2 for a wrong flag, an unexpected argument or an
    `InputError`, told in one line on standard error without a traceback; 130 when interrupted.
    Other exceptions are defects and keep their traceback.

    Args:
      main: gets the program's name and, if allowed, positional arguments.
      positional: what positional arguments are (`PATH`), or None: there are none.
    """

    def parse(argv: Sequence[str]) -> list[str]:
        flags.FLAGS.set_gnu_getopt(True)  # flags may follow positional arguments
        try:
            rest = flags.FLAGS(list(argv))
        except (flags.Error, InputError) as error:
            return _stop(_one_line(error))
        if len(rest) > 1 and positional is None:
            return _stop(f"unexpected argument {rest[1]!r}: flags are written --name=value")
        return rest

    def guarded(argv: Sequence[str]) -> int | None:
        try:
            return main(argv)
        except InputError as error:
            return _stop(_one_line(error))
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return INTERRUPTED

    app.run(guarded, flags_parser=parse)


def _stop(message: str):  # type: ignore[no-untyped-def]
    bold, plain = ("\033[1;31m", "\033[0m") if sys.stderr.isatty() else ("", "")
    print(f"{bold}error:{plain} {message}", file=sys.stderr)
    sys.exit(BAD_INPUT)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
