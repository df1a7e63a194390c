"""Errors that a user can cause and can mend."""

import contextlib
from collections.abc import Iterable, Iterator

MOST_LISTED = 20
"""Items in one message."""

LONGEST_ITEM = 300
"""Characters of one of them."""


class InputError(ValueError):
    """Bad input from outside: a config, a file, a flag, an environment.

    The message is one line that names the offending thing and the remedy. Scripts print it without
    a traceback and exit with status 2.

    Examples:
        >>> import modbrick
        >>> try:
        ...     modbrick.load_model("nowhere")
        ... except modbrick.InputError as error:
        ...     print(error)
        no checkpoint in ...nowhere: name a run's directory or a checkpoint
    """


def listed(items: Iterable[object], separator: str = ", ") -> str:
    """Returns items as part of a message: the first ones, and how many more there are.

    Args:
      items: in order of importance; each is shown as its text.
      separator: between them.
    """
    texts = [str(item) for item in items]
    shown = [
        text if len(text) <= LONGEST_ITEM else f"{text[:LONGEST_ITEM]}..."
        for text in texts[:MOST_LISTED]
    ]
    more = len(texts) - len(shown)
    return separator.join([*shown, f"and {more:,} more"] if more else shown)


def reason(error: BaseException) -> str:
    """Returns what an error says, for a message that names the file: without the path in it."""
    return (isinstance(error, OSError) and error.strerror) or str(error)


@contextlib.contextmanager
def located(where: str) -> Iterator[None]:
    """Puts `where` in front of the message of an `InputError`, unless it stands there already."""
    try:
        yield
    except InputError as error:
        message = str(error)
        raise InputError(message if message.startswith(where) else f"{where}: {message}") from None
