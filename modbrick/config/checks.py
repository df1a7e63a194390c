"""How configs refuse values."""

from __future__ import annotations

from modbrick.errors import InputError


def require(condition: bool, message: str) -> None:
    """Raises `InputError` with `message` unless `condition` holds."""
    if not condition:
        raise InputError(message)
