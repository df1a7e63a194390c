"""Values of a config changed by path and text, as a command line has them.

model.segments[0].layer.attention.heads    8
optimizer.schedule.kind                    constant
data.mixture                               {'code': 0.7, 'web': 0.3}
"""

from __future__ import annotations

import ast
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from modbrick.errors import InputError
from modbrick.schema import (
    MAPPINGS,
    hints,
    is_mapping,
    kinds,
    nearest,
    options,
    records,
    upgraded,
)

_STEP = re.compile(r"""\.?(\w+)|\[(-?\d+)\]|\[['"]([^'"]*)['"]\]""")


def override(hint: Any, data: Any, changes: Mapping[str, Any]) -> Any:
    """Returns plain data with values changed, for `modbrick.schema` to read.

    A record that is None begins with its defaults when one of its fields is set. With another
    `kind`, a record keeps what the new kind has too and what is set here; the rest is left out.

    Args:
      hint: the type of the whole, such as a record.
      data: plain data, as `schema.to_mapping` gives it.
      changes: values by path; text is read as the type of its field says.
    """
    for path, value in changes.items():
        data = _changed(hint, data, path, list(_steps(path)), value, changes)
    return data


class Names:
    """Mapping of the paths that `override` can set.

    Looking one up gives a value of the type that its text is parsed as: True or False, `Items`, or
    `Names` for text that is read later.

    Args:
      hint: the type of what stands at `path`.
      data: plain data there; decides how long lists are.
      path: where this is in the whole, for messages.
    """

    # Underscores: every other attribute would hide a name.
    def __init__(self, hint: Any, data: Any, path: str = "") -> None:
        self._hint, self._data, self._path = hint, data, path

    def __contains__(self, key: object) -> bool:
        return True

    def __getitem__(self, key: str | int) -> Any:
        if isinstance(key, int):
            where = f"{self._path}[{key}]"
            many = len(self._data) if isinstance(self._data, Sequence) else 0
            if not -many <= key < many:
                raise InputError(f"{where}: there are {many}, counted from 0")
            return _names(_item_hint(self._hint), self._data[key], where)
        where = f"{self._path}.{key}" if self._path else key
        data = _as_mapping(self._hint, self._data)
        hint = _field_hint(self._hint, data, key)
        if hint is None:
            known = {name for record in records(self._hint) for name in hints(record)}
            raise InputError(f"{where}: unknown config key; {nearest(key, known)}")
        return _names(hint, data.get(key), where)

    def __setitem__(self, key: str | int, value: Any) -> None:
        """Leaves things as they are: values are set by `override`, where all of them are known."""


class Items(tuple[Any, ...]):
    """A list that is set as a whole."""

    path: str

    def __getitem__(self, key: Any) -> Any:
        raise InputError(f"{self.path}[{key}]: set the whole list, {self.path}=('A', 'B')")


def _names(hint: Any, data: Any, path: str) -> Any:
    possible = options(hint)
    if possible == (bool,):
        return bool(data)
    if typing.get_origin(possible[0]) is not tuple or any(map(is_mapping, data or ())):
        return Names(hint, data, path)
    items = Items()
    items.path = path
    return items


def _steps(path: str) -> Iterator[str | int]:
    for name, index, key in _STEP.findall(path):
        yield int(index) if index else name or key


def _changed(
    hint: Any,
    data: Any,
    path: str,
    steps: list[str | int],
    value: Any,
    changes: Mapping[str, Any],
) -> Any:
    if not steps:
        return _parsed(hint, value)
    key, *rest = steps
    if isinstance(key, int):
        items = list(data)
        items[key] = _changed(_item_hint(hint), items[key], path, rest, value, changes)
        return items
    found = _as_mapping(hint, data)
    below = _field_hint(hint, found, key)
    found[key] = _changed(below, found.get(key), path, rest, value, changes)
    if key == "kind" and not rest and (record := kinds(hint).get(found["kind"])):
        beside = path.removesuffix("kind")
        found = {k: v for k, v in found.items() if k in hints(record) or beside + k in changes}
    return found


def _as_mapping(hint: Any, data: Any) -> dict[str, Any]:
    """Returns the fields of what stands there; none of them if it is no mapping."""
    if not is_mapping(data):
        return {}
    of_records = records(hint)
    if len(of_records) == 1:
        return upgraded(of_records[0], data)
    return dict(data.items())


def _field_hint(hint: Any, data: Mapping[str, Any], key: str) -> Any:
    """Returns the type of a field, of this kind or else of any other; None: no such field."""
    of_records = records(hint)
    if len(of_records) > 1 and (own := kinds(hint).get(data.get("kind", ""))):
        of_records = [own, *of_records]
    for record in of_records:
        if key in hints(record):
            return hints(record)[key]
    for option in options(hint):
        if _is_mapping_hint(option):
            return (typing.get_args(option) or (Any, Any))[1]
    return None


def _item_hint(hint: Any) -> Any:
    return next(
        (typing.get_args(o)[0] for o in options(hint) if typing.get_origin(o) is tuple), Any
    )


def _is_mapping_hint(hint: Any) -> bool:
    return hint in MAPPINGS or typing.get_origin(hint) in MAPPINGS


def _parsed(hint: Any, value: Any) -> Any:
    """Reads text as a field's type asks for; what it cannot be read as, the schema says."""
    if not isinstance(value, str):
        return value
    if value == "None" and types.NoneType in typing.get_args(hint):
        return None
    for option in options(hint):
        words = typing.get_args(option) if typing.get_origin(option) is Literal else ()
        if option is str or any(isinstance(word, str) for word in words):
            return value
    try:
        return ast.literal_eval(value)
    except (SyntaxError, ValueError):
        return value
