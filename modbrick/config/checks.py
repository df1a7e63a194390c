"""Checks of the values of configs."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from modbrick.errors import InputError


def require(condition: bool, message: str) -> None:
    """Raises `InputError` with `message` unless `condition` holds."""
    if not condition:
        raise InputError(message)


def require_finite(record: Any, what: str) -> None:
    """Raises `InputError` if a number of the dataclass `record`, a `what`, is infinite or NaN."""
    for field in dataclasses.fields(record):
        value = getattr(record, field.name)
        require(
            not isinstance(value, float) or math.isfinite(value),
            f"{what} {field.name} must be finite, got {value}",
        )
