"""Typed records from plain data and back: how every config enters and leaves the program.

A record is a frozen dataclass whose fields are numbers, strings, booleans, `None`, `Literal`s,
tuples, string-keyed mappings, and other records. Reading is strict: an unknown key is refused with
the nearest known one, a value of the wrong type is refused with its path.

Alternatives are a union of records told apart by a field `kind`, each with a `Literal` of its own:

    @dataclass(frozen=True)
    class Lora:
        rank: int
        kind: Literal["lora"] = "lora"

    Brick = Lora | Adapter

A record whose data looked different in an older version has a static method `upgrade(data)`, which
returns a mapping of before as one of today and leaves one of today as it is.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import json
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any, Literal, Union

from modbrick.errors import InputError, listed


def nearest(name: str, known: Iterable[str]) -> str:
    """Returns a remark for a message: the known name nearest to `name`, or the list of all."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"known: {listed(known)}" if known else "none is known here"


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
    if not is_mapping(data):
        raise InputError(f"{path or cls.__name__}: expected a mapping, got {data!r}")
    return _record(cls, upgraded(cls, data), path)


def convert(hint: Any, value: Any, path: str = "") -> Any:
    """Reads a value of any type that a field of a record may have, a union of records included.

    Args:
      hint: the type, such as `int | None`, `tuple[Wheel, ...]`, `Lora | Adapter`.
      value: plain data.
      path: where it stands in the whole, for messages.

    Raises:
      InputError: as `from_mapping`; of a union of records, also a kind that none of them has.
    """
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in UNIONS:
        return _union(hint, value, path)
    if origin is Literal:
        if value not in arguments:
            remark = nearest(str(value), map(str, arguments))
            raise InputError(f"{path}: {value!r} is not one of {list(arguments)}; {remark}")
        return value
    if origin is tuple:
        if isinstance(value, (str, bytes)) or not isinstance(value, Iterable):
            raise InputError(f"{path}: expected a list, got {value!r}")
        return tuple(convert(arguments[0], v, f"{path}[{i}]") for i, v in enumerate(value))
    if origin in MAPPINGS or hint in MAPPINGS:
        if not is_mapping(value):
            raise InputError(f"{path}: expected a mapping, got {value!r}")
        item = arguments[1] if arguments else Any
        return {str(k): convert(item, v, f"{path}.{k}") for k, v in value.items()}
    if dataclasses.is_dataclass(hint):
        return from_mapping(hint, value, path)  # type: ignore[arg-type]
    if hint is Any:
        return value
    return _scalar(hint, value, path)


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


UNIONS = (Union, types.UnionType)
MAPPINGS = (dict, Mapping)


def is_mapping(value: Any) -> bool:
    """Returns whether a value has keys: a dict, a ConfigDict."""
    return isinstance(value, Mapping) or hasattr(value, "items")


def options(hint: Any) -> tuple[Any, ...]:
    """Returns the types that a value other than None may have."""
    if typing.get_origin(hint) not in UNIONS:
        return (hint,)
    return tuple(option for option in typing.get_args(hint) if option is not types.NoneType)


def records(hint: Any) -> list[type]:
    """Returns the records that a value may be."""
    possible = (o for o in options(hint) if isinstance(o, type))
    return [option for option in possible if dataclasses.is_dataclass(option)]


@functools.cache
def hints(cls: type) -> dict[str, Any]:
    """Returns the types of a record's fields, by name."""
    of_all = typing.get_type_hints(cls)
    return {f.name: of_all[f.name] for f in dataclasses.fields(cls) if f.init}


def kinds(hint: Any) -> dict[str, type]:
    """Returns the records of a union, by the kinds that tell them apart.

    Raises:
      TypeError: a record has no `kind: Literal[...]`, or shares one with another.
    """
    found: dict[str, type] = {}
    for record in records(hint):
        own = typing.get_args(hints(record).get("kind"))
        if not own or found.keys() & set(own):
            raise TypeError(f"{record.__name__} needs a field kind: Literal[...] of its own")
        found |= dict.fromkeys(own, record)
    return found


def of_kind(hint: Any, data: Any, path: str = "") -> type:
    """Returns the record of a union that a mapping is of.

    Raises:
      InputError: the mapping names no kind, or one that there is not.
    """
    found = records(hint)
    if len(found) == 1:
        return found[0]
    known, where = kinds(hint), f"{path}.kind" if path else "kind"
    if "kind" not in data:
        raise InputError(f"{where}: missing; it can be {', '.join(known)}")
    kind = data["kind"]
    if not isinstance(kind, str) or kind not in known:
        raise InputError(
            f"{where}: {kind!r} is not one of {list(known)}; {nearest(str(kind), known)}"
        )
    return known[kind]


def upgraded(cls: type, data: Any) -> dict[str, Any]:
    """Returns a mapping as the record `cls` is written today; see `upgrade` above."""
    upgrade = getattr(cls, "upgrade", dict)
    return upgrade({str(key): value for key, value in data.items()})


def _record[T](cls: type[T], data: Mapping[str, Any], path: str) -> T:
    known = hints(cls)  # type: ignore[arg-type]
    values = {}
    for key, value in data.items():
        where = f"{path}.{key}" if path else key
        if key not in known:
            raise InputError(f"{where}: unknown key; {nearest(key, known)}")
        values[key] = convert(known[key], value, where)
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        required = (
            field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        )
        if field.init and required and field.name not in values:
            raise InputError(
                f"{path + '.' if path else ''}{field.name}: missing; {cls.__name__} needs it"
            )
    try:
        return cls(**values)
    except InputError as error:
        raise InputError(f"{path}: {error}" if path else str(error)) from None


def _union(hint: Any, value: Any, path: str) -> Any:
    if value is None and types.NoneType in typing.get_args(hint):
        return None
    possible, of_records = options(hint), records(hint)
    if len(possible) == 1:
        return convert(possible[0], value, path)
    if of_records and isinstance(value, tuple(of_records)):
        return value
    if of_records and is_mapping(value):
        cls = of_kind(hint, value, path)
        data = upgraded(cls, value)
        for key in data if len(of_records) > 1 else ():
            others = [kind for kind, other in kinds(hint).items() if key in hints(other)]
            if key not in hints(cls) and others:
                raise InputError(
                    f"{path}.{key}: kind {data['kind']!r} has none, only {', '.join(others)}"
                )
        return _record(cls, data, path)
    for option in possible:
        if option not in of_records:
            try:
                return convert(option, value, path)
            except InputError:
                continue  # another option may take it; if none does, all are named
    names = " or ".join(getattr(option, "__name__", str(option)) for option in possible)
    raise InputError(f"{path}: expected {names}, got {value!r}")


def _scalar(hint: Any, value: Any, path: str) -> Any:
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        name = getattr(hint, "__name__", str(hint))
        raise InputError(f"{path}: expected {name}, got {value!r}")
    return value
