"""Config files: Python with a function `get_config` that returns the config.

    python scripts/train.py --config=configs/NAME.py[:ARGUMENT]

`get_config()` returns a record, such as `modbrick.training.run_config.RunConfig`; or a `ConfigDict`
of `ml_collections`, or any mapping, whose keys are the record's. What stands after the colon is
given to `get_config` as a string: presets take the topology that they are to be laid out for.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from modbrick.errors import InputError
from modbrick.paths import expanded
from modbrick.schema import from_mapping, is_mapping


def load_config[T](record: type[T], place: str) -> T:
    """Returns the config that a file describes.

    Args:
      record: what it is, a dataclass as `modbrick.schema` reads it.
      place: `configs/NAME.py`, or `configs/NAME.py:ARGUMENT`.

    Raises:
      InputError: names the file, and what is wrong with it.
    """
    config = read_config_file(place, record)
    try:
        return from_mapping(record, config)
    except InputError as error:
        raise InputError(f"{place}: {error}") from None


def read_config_file(place: str, record: type) -> Any:
    """Returns what a file's `get_config` returns: a `record`, or a mapping of plain data.

    Raises:
      InputError: no such file, no `get_config` in it, or an argument that it does not take.
      Exception: what else the file raises, which is a defect of it.
    """
    name, *argument = split_place(place)
    path = Path(expanded(name))
    if not path.is_file():
        raise InputError(f"{name}: no such config file")
    try:
        get_config = getattr(_module(path), "get_config", None)
        if not callable(get_config):
            raise InputError("a config file defines get_config()")
        _check_argument(get_config, argument)
        config = get_config(*argument)
    except InputError as error:
        raise InputError(f"{name}: {error}") from None
    except SyntaxError as error:
        where = f"{error.filename}:{error.lineno}"
        raise InputError(f"{where}: this is no Python: {error.msg}") from None
    except (TypeError, ValueError) as error:
        frames = traceback.extract_tb(error.__traceback__)
        lines = [str(frame.lineno) for frame in frames if frame.filename == str(path)]
        raise InputError(f"{':'.join([name, *lines[-1:]])}: {error}") from error
    if hasattr(config, "to_dict"):
        return config.to_dict()
    if not is_mapping(config) and not isinstance(config, record):
        kind = type(config).__name__
        raise InputError(f"{name}: get_config() returned {kind}, expected {record.__name__}")
    return config


def split_place(place: str) -> list[str]:
    """Returns the file of `NAME.py:ARGUMENT`, and the argument if there is one.

    Both may have colons: the file is the shortest part before one of them that is there.
    """
    for at in [at for at, letter in enumerate(place) if letter == ":"]:
        if Path(expanded(place[:at])).is_file():
            return [place[:at], place[at + 1 :]]
    return [place] if Path(expanded(place)).is_file() else place.split(":", 1)


def _module(path: Path) -> ModuleType:
    name = f"{path.stem}_config"
    # A loader of source, whatever the file's ending: what is no Python is then said to be none.
    loader = importlib.machinery.SourceFileLoader(name, str(path))
    module = importlib.util.module_from_spec(importlib.machinery.ModuleSpec(name, loader))
    module.__file__ = str(path)
    sys.modules[name] = module  # dataclasses that the file may define look for their module there
    loader.exec_module(module)
    return module


def _check_argument(get_config: Callable[..., Any], argument: list[str]) -> None:
    """Refuses an argument that `get_config` does not take, or none where it needs one."""
    signature = inspect.signature(get_config)
    try:
        signature.bind(*argument)
    except TypeError:
        if argument:
            raise InputError(f"its get_config() takes no argument, got {argument[0]!r}") from None
        raise InputError(
            f"its get_config{signature} needs an argument: give it after the file, NAME.py:ARGUMENT"
        ) from None
