"""JSON from untrusted files: one object, no key twice, no more than a set size."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from modbrick.errors import InputError

LARGEST_FILE = 64 << 20
"""Bytes; the index of a model with 100,000 tensors has some 10 MiB."""


def parse_object(text: bytes, where: str) -> dict[str, Any]:
    """Returns the JSON object in UTF-8 `text`.

    Raises:
      InputError: anything else, or an object with the same key twice; the message begins with
        `where`.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs:
            if key in found:
                raise InputError(f"{where}: the key {key!r} stands there twice")
            found[key] = value
        return found

    try:
        data = json.loads(text.decode("utf-8"), object_pairs_hook=unique)
    except InputError:
        raise
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: not valid JSON ({error})") from None
    if not isinstance(data, dict):
        raise InputError(f"{where}: expected a JSON object, got {type(data).__name__}")
    return data


def read_object(path: Path) -> dict[str, Any]:
    """Returns the JSON object in a file of at most `LARGEST_FILE` bytes.

    Raises:
      InputError: a file that cannot be read, is larger, or holds anything else.
    """
    try:
        size = path.stat().st_size
        if size > LARGEST_FILE:
            raise InputError(f"{path}: {size} bytes are too many, at most {LARGEST_FILE} are read")
        text = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    return parse_object(text, str(path))
