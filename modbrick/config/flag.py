"""The flag that names a config file, and the flags that change its values.

    CONFIG = DEFINE_config("config", RunConfig)
    ...
    python SCRIPT --config=FILE.py[:ARGUMENT] [--config.section.key=value ...]

`ml_collections.config_flags` finds such flags on the command line; what the file returns and how
text becomes a value is said by the record (`files`, `overrides`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from absl import flags
from ml_collections import config_flags
from ml_collections.config_flags.tuple_parser import TupleParser

from modbrick.config.files import read_config_file
from modbrick.config.overrides import Items, Names, override
from modbrick.schema import from_mapping, to_mapping

flags.disclaim_key_flags()  # a flag belongs to the script that defines it


class ConfigFlag[T]:
    """A config of type `record`, as the command line names and changes it."""

    def __init__(
        self,
        name: str,
        record: type[T],
        values: flags.FlagValues,
        complete: Callable[[Any], Any],
    ) -> None:
        self.name = name
        self._record = record
        self._values = values
        self._complete = complete

    @property
    def value(self) -> T | None:
        """The config; None if no file is named.

        Raises:
          InputError: names the value that cannot be, or does not fit the others.
        """
        names = self._values[self.name].value
        if names is None:
            return None
        found = names._config
        changes = config_flags.get_override_values(self._values[self.name])
        if changes:
            found = override(self._record, to_mapping(found), changes)
        return from_mapping(self._record, self._complete(found))


def DEFINE_config[T](
    name: str,
    record: type[T],
    *,
    complete: Callable[[Any], Any] = lambda config: config,
    flag_values: flags.FlagValues = flags.FLAGS,
    argv: list[str] | None = None,
) -> ConfigFlag[T]:
    """Defines `--NAME=FILE.py[:ARGUMENT]`, and `--NAME.section.key=value` for every field.

    Args:
      name: of the flag.
      record: what the file's `get_config` returns, or what its ConfigDict is read as.
      complete: is handed the record, or plain data, with the values of all flags, and fills in what
        the file left open.
      flag_values: where to define it.
      argv: the command line, if it is not that of the process.
    """
    help_text = (
        "Python file with get_config(), and what it takes, FILE.py[:ARGUMENT]. Each value is a "
        f"flag: --{name}.section.key=value, --{name}.list[0].key=value."
    )
    config_flags.DEFINE_config_file(
        name, None, help_text, flag_values=flag_values, lock_config=False, sys_argv=argv
    )
    flag_values[name].parser = _FileParser(record)
    return ConfigFlag(name, record, flag_values, complete)


class _Root(Names):
    """The names of a config, and the config that its file returned."""

    def __init__(self, record: type, config: Any) -> None:
        super().__init__(record, to_mapping(config))
        self._config = config


class _FileParser(flags.ArgumentParser):
    def __init__(self, record: type) -> None:
        super().__init__()
        self._record = record

    def parse(self, argument: str) -> _Root:
        return _Root(self._record, read_config_file(argument, self._record))

    def flag_type(self) -> str:
        return "config file"


class _AsWritten(flags.ArgumentParser):
    """Leaves text as it is, for the schema to read."""

    def parse(self, argument: Any) -> Any:
        return argument

    def flag_type(self) -> str:
        return "config section"


config_flags.register_flag_parser_for_type(Names, _AsWritten())
config_flags.register_flag_parser_for_type(Items, TupleParser())  # repeated flags add up
