"""A program to report on, named so that another process can build it."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


@dataclasses.dataclass(frozen=True)
class Program:
    """A function and what it is compiled for.

    Attributes:
        function: takes `arguments`.
        arguments: pytrees. Floating point leaves need only a shape and a dtype. Integers on which
            block maps or loops depend, such as a routing plan, are concrete arrays, so that the
            bytes that move can be counted.
    """

    function: Callable[..., Any]
    arguments: tuple[Any, ...]


@dataclasses.dataclass(frozen=True)
class ProgramReference:
    """Names a function that builds a `Program`.

    Attributes:
        builder: "package.module:function", or "path/to/file.py:function".
        arguments: keyword arguments of the function, plain data.
    """

    builder: str
    arguments: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.builder.count(":") != 1:
            raise ValueError(f"builder={self.builder!r} is not of the form module:function")

    def build(self) -> Program:
        """Imports the module and calls the function.

        Raises:
            ValueError: there is no such module or function.
        """
        place, name = self.builder.split(":")
        if place.endswith(".py"):
            path = Path(place).resolve()
            spec = importlib.util.spec_from_file_location(path.stem, path)
            if spec is None or spec.loader is None or not path.is_file():
                raise ValueError(f"builder={self.builder!r}: there is no file {path}")
            module = importlib.util.module_from_spec(spec)
            sys.modules[path.stem] = module
            spec.loader.exec_module(module)
        else:
            module = importlib.import_module(place)
        if not hasattr(module, name):
            raise ValueError(f"builder={self.builder!r}: {place} has no {name}")
        return getattr(module, name)(**self.arguments)
