"""Errors that a user can cause and can mend."""

import contextlib
from collections.abc import Iterator


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


@contextlib.contextmanager
def located(where: str) -> Iterator[None]:
    """Puts `where` in front of the message of an `InputError`, unless it stands there already."""
    try:
        yield
    except InputError as error:
        message = str(error)
        raise InputError(message if message.startswith(where) else f"{where}: {message}") from None
