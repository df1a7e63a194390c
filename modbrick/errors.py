"""Errors that a user can cause and can mend."""


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
