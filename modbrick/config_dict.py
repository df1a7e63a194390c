"""Records as `ml_collections` config dicts, for config files that change one after it was made.

`get_config()` may return either (`modbrick.config.files`); a record is the plainer of the two.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict, config_dict


def to_config_dict(record: Any) -> ConfigDict:
    """Returns a record with all its fields, those left at their defaults too.

    A field that is None takes a value of its type from the command line
    (`--config.training.initial_checkpoint=DIR`).

    Args:
      record: a dataclass as `modbrick.schema` reads it; that reads the outcome back.
    """
    hints = typing.get_type_hints(type(record))
    names = [field.name for field in dataclasses.fields(record) if field.init]
    values = {name: _value(getattr(record, name), hints[name]) for name in names}
    return ConfigDict(values).lock()


def _value(value: Any, hint: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return to_config_dict(value)
    if isinstance(value, tuple):
        return tuple(_value(item, Any) for item in value)
    if isinstance(value, Mapping):
        return ConfigDict(dict(value))
    return config_dict.placeholder(_plain_type(hint)) if value is None else value


def _plain_type(hint: Any) -> type:
    """Returns the type that a value other than None has."""
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    options = typing.get_args(hint) if union else (hint,)
    plain = next(option for option in options if option is not type(None))
    origin = typing.get_origin(plain) or plain
    if origin in (int, float, str, bool, tuple):
        return origin
    return object  # a record or a mapping: anything, which the schema then checks
