"""Typed records from plain data and back: how every config enters and leaves the program.

A record is a frozen dataclass whose fields are numbers, strings, booleans, `None`, `Literal`s,
tuples, string-keyed mappings, and other records. Reading is strict: an unknown key is refused with
the nearest known one, a value of the wrong type is refused with its path.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any, Literal, Union

from modbrick.errors import InputError


def nearest(name: str, known: Iterable[str]) -> str:
    """Returns a remark for a message: the known name nearest to `name`, or the list of all."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"known: {', '.join(known)}" if known else "none is known here"


def from_mapping[T](cls: type[T], data: Any, path: str = "") -> T:
    """Builds the record `cls` from nested mappings (a dict, a ConfigDict, parsed JSON).

    Args:
      cls: a dataclass type.
      data: a mapping from field names to values; or an instance of `cls`, returned as it is.
      path: where `data` stands in the whole, for messages (`model.segments[0]`).

    Raises:
      InputError: an unknown key, a missing key, a value of the wrong type, or one that the record's
        own validation refuses; the message names the path.
    """
    if isinstance(data, cls):
        return data
    if not isinstance(data, Mapping) and not hasattr(data, "items"):
        raise InputError(f"{path or cls.__name__}: expected a mapping, got {data!r}")
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}  # type: ignore[arg-type]
    hints = typing.get_type_hints(cls)
    values = {}
    for key, value in data.items():
        where = f"{path}.{key}" if path else str(key)
        if key not in fields:
            raise InputError(f"{where}: unknown key; {nearest(str(key), fields)}")
        values[key] = _convert(hints[key], value, where)
    for name, field in fields.items():
        required = (
            field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        )
        if required and name not in values:
            raise InputError(
                f"{path + '.' if path else ''}{name}: missing; {cls.__name__} needs it"
            )
    try:
        return cls(**values)
    except InputError as error:
        raise InputError(f"{path}: {error}" if path else str(error)) from None


def to_mapping(record: Any) -> Any:
    """Returns `record` as JSON-able data: dicts, lists, numbers, strings, booleans, `None`."""
    if dataclasses.is_dataclass(record) and not isinstance(record, type):
        return {
            f.name: to_mapping(getattr(record, f.name))
            for f in dataclasses.fields(record)
            if f.init
        }
    if isinstance(record, Mapping):
        return {str(key): to_mapping(value) for key, value in record.items()}
    if isinstance(record, (tuple, list)):
        return [to_mapping(value) for value in record]
    return record


def to_json(record: Any) -> str:
    """Returns `record` as indented JSON text that `from_json` reads back to an equal record."""
    return json.dumps(to_mapping(record), indent=2) + "\n"


def from_json[T](cls: type[T], text: str, path: str = "") -> T:
    """Builds the record `cls` from JSON text.

    Raises:
      InputError: text that is no JSON, or anything `from_mapping` refuses.
    """
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{path or cls.__name__}: not valid JSON ({error})") from None
    return from_mapping(cls, data, path)


def differences(old: Any, new: Any, path: str = "") -> list[str]:
    """Lists where two pieces of plain data differ, one line a leaf: `path: old -> new`."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        lines = []
        for key in [*old, *(k for k in new if k not in old)]:
            where = f"{path}.{key}" if path else str(key)
            lines += differences(old.get(key), new.get(key), where)
        return lines
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        return [
            line
            for i, (a, b) in enumerate(zip(old, new, strict=True))
            for line in differences(a, b, f"{path}[{i}]")
        ]
    return [] if old == new else [f"{path}: {_brief(old)} -> {_brief(new)}"]


def _brief(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else text[:57] + "..."


def _convert(hint: Any, value: Any, path: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        options = [a for a in arguments if a is not type(None)]
        for option in options[:-1]:
            try:
                return _convert(option, value, path)
            except InputError:
                continue  # the last option's message is the one reported
        return _convert(options[-1], value, path)
    if origin is Literal:
        if value not in arguments:
            remark = nearest(str(value), map(str, arguments))
            raise InputError(f"{path}: {value!r} is not one of {list(arguments)}; {remark}")
        return value
    if origin is tuple:
        if isinstance(value, (str, bytes)) or not isinstance(value, Iterable):
            raise InputError(f"{path}: expected a list, got {value!r}")
        return tuple(_convert(arguments[0], v, f"{path}[{i}]") for i, v in enumerate(value))
    if origin in (dict, Mapping) or hint in (dict, Mapping):
        if not hasattr(value, "items"):
            raise InputError(f"{path}: expected a mapping, got {value!r}")
        item = arguments[1] if arguments else Any
        return {str(k): _convert(item, v, f"{path}.{k}") for k, v in value.items()}
    if dataclasses.is_dataclass(hint):
        return from_mapping(hint, value, path)  # type: ignore[arg-type]
    if hint is Any:
        return value
    return _scalar(hint, value, path)


def _scalar(hint: Any, value: Any, path: str) -> Any:
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        name = getattr(hint, "__name__", str(hint))
        raise InputError(f"{path}: expected {name}, got {value!r}")
    return value
