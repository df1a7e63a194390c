"""Typed values of a GGUF file's metadata, by the keys of one architecture."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from modbrick.convert.gguf.values import shown
from modbrick.errors import InputError, listed


@dataclasses.dataclass(frozen=True)
class Keys:
    """Metadata below a prefix.

    Attributes:
      metadata: all of it.
      prefix: of the keys, with its dot.
      where: begins every message.
    """

    metadata: Mapping[str, Any]
    prefix: str
    where: str

    def error(self, name: str, problem: str) -> InputError:
        """Returns the error about the value of a key."""
        key = self.prefix + name
        return InputError(f"{self.where}: {key} is {shown(self.metadata.get(key))}; {problem}")

    def refuse_others(self, known: Collection[str]) -> None:
        """Raises `InputError` for keys below the prefix that are not `known`, each named.

        Those that are zero or false are let pass: in llama.cpp there is no such thing then.
        """
        present = (
            key
            for key, value in self.metadata.items()
            if key.startswith(self.prefix)
            and not (isinstance(value, bool | int | float) and value == 0)
        )
        others = sorted(key for key in present if key.removeprefix(self.prefix) not in known)
        if others:
            named = listed(key if key.isprintable() else repr(key) for key in others)
            raise InputError(
                f"{self.where}: settings that are not supported: {named} (if the model does not "
                "depend on them, import with --ignore_keys and their names)"
            )

    def count(self, name: str, default: int | None = None) -> int:
        """Returns a count of 0 or more.

        Args:
          name: of the key, after the prefix.
          default: without the key; None: there must be one.
        """
        value = self._value(name, default)
        if type(value) is not int or value < 0:
            raise self.error(name, "expected a count")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        """Returns a finite number, as the shortest decimal that is the same float32.

        Files keep 1e-05 as the float32 nearest to it; the decimal is what was meant.
        """
        value = self._value(name, default)
        if type(value) not in (int, float) or not math.isfinite(value):
            raise self.error(name, "expected a number")
        short = float(str(np.float32(value)))
        return short if np.float64(np.float32(value)) == value else float(value)

    def text(self, name: str, default: str | None = None) -> str:
        """Returns a text."""
        value = self._value(name, default)
        if not isinstance(value, str):
            raise self.error(name, "expected a text")
        return value

    def flag(self, name: str, default: bool | None = None) -> bool:
        """Returns a truth value."""
        value = self._value(name, default)
        if not isinstance(value, bool):
            raise self.error(name, "expected true or false")
        return value

    def _value(self, name: str, default: Any) -> Any:
        value = self.metadata.get(self.prefix + name, default)
        if value is None:
            raise InputError(f"{self.where}: {self.prefix}{name} is missing")
        return value
