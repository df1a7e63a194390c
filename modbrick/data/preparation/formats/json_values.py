"""Records of JSON files: lines, the values of an array, values one after the other."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

from modbrick.data.preparation.formats.streams import BYTE_ORDER_MARK, UnreadableError

LARGEST_RECORD = 1 << 30
"""Bytes; longer lines and values are left out."""

# What tells where a value ends; a string that has not ended yet is a lone quotation mark.
_TOKEN = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|[\[\]{},"]|[^\s\[\]{},":]+', re.DOTALL)


class BadRecordError(Exception):
    """A record without a text that could be used.

    Args:
      reason: one of a few, to be counted.
      detail: about this record.
    """

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(reason)
        self.reason = reason
        self.detail = detail


def text_of(record: bytes | None, field: str) -> str:
    """Returns the text in a record, an object in UTF-8.

    Numbers that JSON does not have (`NaN`, `Infinity`) may stand in other fields, as Python writes
    them.

    Args:
      record: None stands for one that is too long.
      field: key of the text; `doc.text` is also the key `text` of the object at `doc`.

    Raises:
      BadRecordError: says why there is none.
    """
    if record is None:
        raise BadRecordError(f"longer than {LARGEST_RECORD >> 30} GiB")
    try:
        text = record.removeprefix(BYTE_ORDER_MARK).decode("utf-8")  # files that were joined
    except UnicodeDecodeError:
        raise BadRecordError("not UTF-8") from None
    value = look_up(_parsed(text, field.split(".")), field)
    if value is None:
        raise BadRecordError(f"field {field!r} is null")
    if not isinstance(value, str):
        raise BadRecordError(f"field {field!r} is not text")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise BadRecordError("not Unicode (lone surrogates)") from None
    return value


def look_up(record: Any, field: str) -> Any:
    """Returns what stands at a field of a record, or of an object within it.

    Raises:
      BadRecordError: no object, or without the field.
    """
    found = _found(record, field)
    if found:
        return found[0]
    if not isinstance(record, dict):
        raise BadRecordError("not an object with fields")
    names = ", ".join(map(str, record))
    names = names[:80].encode("utf-8", "backslashreplace").decode()
    raise BadRecordError(f"no field {field!r}", f"found: {names or 'none'}")


def _found(value: Any, field: str) -> list[Any]:
    if not isinstance(value, dict):
        return []
    if field in value:
        return [value[field]]
    for dot in re.finditer(r"\.", field):
        within = _found(value.get(field[: dot.start()]), field[dot.end() :])
        if within:
            return within
    return []


def _parsed(text: str, keys: list[str]) -> Any:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]
        for key in keys:
            if names.count(key) > 1:
                raise BadRecordError(f"field {key!r} stands there twice")
        return dict(pairs)

    # Only then is it worth the time.
    twice = any(text.count(f'"{key}"') > 1 for key in keys)
    try:
        return json.loads(text, object_pairs_hook=unique if twice else None)
    except json.JSONDecodeError:
        raise BadRecordError("not JSON") from None
    except RecursionError:
        raise BadRecordError("nested too deeply") from None
    except ValueError:
        raise BadRecordError("a number of too many digits") from None


def split_lines(chunks: Iterable[bytes]) -> Iterator[bytes | None]:
    """Yields lines without their ends; None for one that is too long."""
    parts: list[bytes] = []
    held = 0
    for chunk in chunks:
        *ended, rest = chunk.split(b"\n")
        for line in ended:
            held += len(line)
            yield b"".join([*parts, line]) if held <= LARGEST_RECORD else None
            parts, held = [], 0
        held += len(rest)
        if held <= LARGEST_RECORD:
            parts.append(rest)
        else:
            parts.clear()
    if held:
        yield b"".join(parts) if held <= LARGEST_RECORD else None


def split_values(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Yields the values of an array, or values that stand one after the other, as they are written.

    What is wrong within a value is left to whoever parses it: its end is found by brackets and
    quotation marks alone.

    Raises:
      EOFError: an array or a value has no end.
      UnreadableError: a value is too long.
    """
    rest = itertools.chain(chunks, [b"\n"])
    buffer, scanned = b"", 0
    start: int | None = None  # of a value
    depth, outside = 0, 0  # brackets around the place; around a value: 1 in an array
    while data := _at_least(rest, len(buffer) - scanned):
        cut = scanned if start is None else start
        buffer, scanned = buffer[cut:] + data, scanned - cut
        start = None if start is None else 0
        for token in _TOKEN.finditer(buffer, scanned):
            if _may_go_on(token, len(buffer)):
                break
            scanned, mark = token.end(), token[0][:1]
            if depth == 0 and mark == b"[":
                depth = outside = 1
            elif depth == outside and mark in (b",", b"]"):
                if start is not None or mark == b"," or depth == 0:
                    yield buffer[token.start() if start is None else start : token.start()]
                start = None
                if mark == b"]":
                    depth = outside = 0
            else:
                start = token.start() if start is None else start
                depth += (mark in (b"[", b"{")) - (mark in (b"]", b"}") and depth > outside)
                if depth == 0:
                    yield buffer[start : token.end()]
                    start = None
        if start is not None and len(buffer) - start > LARGEST_RECORD:
            raise UnreadableError(f"a value longer than {LARGEST_RECORD >> 30} GiB")
    if depth or buffer[scanned:].strip():
        raise EOFError("ends in the middle of an array or a value")


def _may_go_on(token: re.Match[bytes], end: int) -> bool:
    """Returns whether more bytes could make another token of what stands at the end of some."""
    if token[0] == b'"':
        return True
    return token.end() == end and token[0][:1] not in b'"[]{},'


def _at_least(chunks: Iterator[bytes], size: int) -> bytes:
    """Returns chunks of that size or more together; nothing at the end.

    As much again as waits to be scanned keeps the time for a long string linear.
    """
    found: list[bytes] = []
    held = 0
    for chunk in chunks:
        found.append(chunk)
        held += len(chunk)
        if held and held >= size:
            break
    return b"".join(found)
