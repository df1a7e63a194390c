"""Start and end of scripts: flags, one clear line for what a user can mend, an exit status."""

from __future__ import annotations

import contextlib
import difflib
import os
import signal
import sys
import traceback
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any, NoReturn

from absl import app, flags, logging
from etils import epath
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from modbrick.errors import InputError, reason
from modbrick.schema import nearest

BAD_INPUT = 2
_BYTE_ORDER_MARK = "\ufeff"
INTERRUPTED = 128 + signal.SIGINT


def run(main: Callable[[Sequence[str]], int | None], *, positional: str | None = None) -> None:
    """Parses flags, runs `main(argv)` and exits.

    Exit status: what `main` returns (None: 0); 0 for --help; 2 for a wrong flag, an unexpected
    argument or an `InputError`, reported in one line on standard error without a traceback; 130
    when interrupted. Other exceptions are defects and keep their traceback.

    Args:
      main: gets the program's name and, if allowed, positional arguments.
      positional: what positional arguments are (`PATH`), or None: there are none.
    """

    def parse(argv: Sequence[str]) -> list[str]:
        flags.FLAGS.set_gnu_getopt(True)  # flags may follow positional arguments
        try:
            rest = flags.FLAGS(list(argv))
        except SystemExit:
            sys.exit(0)  # --help was asked for and given; absl counts that as a failure
        except flags.UnrecognizedFlagError as error:
            _stop(f"--{error.flagname}: unknown flag{_nearest_flag(error.flagname)}")
        except (flags.Error, InputError) as error:
            # absl puts the whole value of a flag in front of what is wrong with a config file.
            cause = error.__context__
            _stop(_brief(cause if isinstance(cause, InputError) else error))
        except (LookupError, TypeError, ValueError) as error:
            # A name that ml_collections cannot follow, such as --config.flag.more=1.
            if "ml_collections" not in traceback.extract_tb(error.__traceback__)[-1].filename:
                raise
            _stop(_brief(error))
        if flags.FLAGS["verbosity"].using_default_value:
            # The libraries' chatter is for --verbosity=0.
            flags.FLAGS["verbosity"].value = logging.WARNING
            flags.FLAGS["verbosity"].using_default_value = False
        if len(rest) > 1 and positional is None:
            _stop(f"unexpected argument {rest[1]!r}: flags are written --name=value")
        return rest

    def guarded(argv: Sequence[str]) -> int | None:
        try:
            return main(argv)
        except InputError as error:
            _stop(_brief(error))
        except ImportError as error:
            # fsspec says by an ImportError of its own what it would need for a kind of address.
            if getattr(error.__cause__, "name", None) != "gcsfs":
                raise
            _stop('directories on gs:// need gcsfs: pip install "modbrick[gcs]"')
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return INTERRUPTED

    app.run(guarded, flags_parser=parse)


def check_output(
    flag: flags.FlagHolder[str | None], *, remote: bool = False, endings: Sequence[str] = ()
) -> None:
    """Checks that the file that a flag names can be written; comes before any work for it.

    Args:
      flag: of the file; None: there is nothing to write.
      remote: whether it may lie elsewhere, such as on gs://.
      endings: that the name may have, such as `.png`; any if there are none.

    Raises:
      InputError: names the flag, and what is in the way.
    """
    if flag.value is None:
        return
    if not flag.value:
        raise InputError(f"--{flag.name}: name a file, got an empty name")
    if "://" in flag.value and not remote:
        raise InputError(f"--{flag.name}: must be a file of this machine, got {flag.value}")
    path = epath.Path(flag.value)
    if endings and path.suffix.lower() not in endings:
        raise InputError(
            f"--{flag.name}: the name must end in {' or '.join(endings)}, got {flag.value}"
        )
    if path.is_dir():
        raise InputError(f"--{flag.name}: {flag.value} is a directory; name a file")
    if not path.parent.is_dir():
        raise InputError(f"--{flag.name}: there is no directory {path.parent}")
    target = path if path.exists() else path.parent
    if "://" not in flag.value and not os.access(target, os.W_OK):
        raise InputError(f"--{flag.name}: {target} must not be written")


def write_output(flag: flags.FlagHolder[str | None], text: str) -> None:
    """Writes a text and the end of its last line to the file that a flag names, if it names one."""
    if flag.value:
        epath.Path(flag.value).write_text(f"{text}\n")


def read_texts(flag: flags.FlagHolder[list[str] | None]) -> list[str]:
    """Returns the texts of the files that a flag names, without a byte order mark.

    Raises:
      InputError: names the flag and the file that cannot be read.
    """
    texts = []
    for name in flag.value or ():
        try:
            path = epath.Path(os.path.expanduser(name))
            texts.append(path.read_text(encoding="utf-8").removeprefix(_BYTE_ORDER_MARK))
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(
                f"--{flag.name} {name} cannot be read as UTF-8 text ({reason(error)})"
            ) from error
    return texts


def check_known(flag: flags.FlagHolder[Any], known: Collection[str], kind: str = "value") -> None:
    """Checks that what a flag names, one thing or several, is among what is known.

    Args:
      flag: of a name or of several; None: it names nothing.
      known: names.
      kind: what they name, for the message.

    Raises:
      InputError: names the flag, what is not known, and the nearest that is.
    """
    values = [flag.value] if isinstance(flag.value, str) else flag.value or ()
    for value in values:
        if value not in known:
            raise InputError(f"--{flag.name}: unknown {kind} {value!r}; {nearest(value, known)}")


def check_alone(flag: flags.FlagHolder[bool], *others: flags.FlagHolder[Any], because: str) -> None:
    """Checks that flags which another one makes useless are not given beside it.

    Args:
      flag: if it is set, the others mean nothing.
      others: that are useless then.
      because: why, to be read behind the flag's name.

    Raises:
      InputError: names both.
    """
    for other in others:
        if flag.value and other.present:
            raise InputError(f"--{flag.name} {because}: leave out --{other.name}, or --{flag.name}")


@contextlib.contextmanager
def progress_bars() -> Iterator[Callable[[str, int], Callable[[], None]]]:
    """Shows bars on standard error, one below the other.

    Yields:
      `bar(what, total)`, which begins a bar of so many steps; what it returns is called after each.
    """
    columns = (
        TextColumn("{task.description:32}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:

        def bar(what: str, total: int) -> Callable[[], None]:
            task = progress.add_task(what, total=total)
            return lambda: progress.advance(task)

        yield bar


def print_table(title: str, columns: Iterable[str], rows: Iterable[Iterable[str]]) -> None:
    """Prints a table on standard output, for people."""
    table = Table(*columns, title=title)
    for row in rows:
        table.add_row(*row)
    Console().print(table)


def interrupt_at_sigterm() -> None:
    """Lets SIGTERM end the program as Ctrl-C does, so that what was begun is removed."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)


def _stop(message: str) -> NoReturn:
    bold, plain = ("\033[1;31m", "\033[0m") if sys.stderr.isatty() else ("", "")
    print(f"{bold}error:{plain} {message}", file=sys.stderr)
    sys.exit(BAD_INPUT)


def _nearest_flag(name: str) -> str:
    close = difflib.get_close_matches(name, list(flags.FLAGS), n=1, cutoff=0.6)
    return f"; did you mean --{close[0]}?" if close else "; --help lists them"


def _brief(error: Exception) -> str:
    """Returns what a user needs of a message, in one line."""
    return " ".join(str(error).replace("\\n", "\n").split())
