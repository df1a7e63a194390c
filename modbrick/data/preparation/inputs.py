"""Inputs of a data set as a user names them."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from modbrick.data.manifest import Split
from modbrick.data.preparation.formats.kinds import without_endings
from modbrick.errors import InputError
from modbrick.paths import expanded

STANDARD_LIBRARY = "stdlib:"

WILDCARDS = re.compile(r"[*?\[]")
_DOMAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


@dataclass(frozen=True)
class Input:
    """An input as a user names it: a directory, a glob, a file, or `stdlib:`.

    Attributes:
      path: as given.
      domain: name for its documents; None: made from the path.
      split: all its documents go here; None: by hash.
    """

    path: str
    domain: str | None = None
    split: Split | None = None

    @classmethod
    def parse(cls, text: str, split: Split | None = None) -> Input:
        """Reads `PATH` or `DOMAIN=PATH` (an existing path with `=` in it is taken as a path).

        A path may begin with `~`.
        """
        name, equals, path = text.partition("=")
        whole = expanded(text)
        if not whole:
            raise InputError("--input: names no path; write PATH or DOMAIN=PATH")
        if not equals or os.path.exists(whole):
            return cls(whole, None, split)
        if not path:
            raise InputError(f"--input={text}: no path after the domain; write DOMAIN=PATH")
        return cls(expanded(path), checked_domain(name), split)

    @property
    def domain_of_path(self) -> str:
        """Name for the domain, made from the path."""
        path = self.path
        if path == STANDARD_LIBRARY:
            return "stdlib"
        match = WILDCARDS.search(path)
        fixed = path[: match.start()] if match and not os.path.exists(path) else None
        path = path if fixed is None else os.path.dirname(fixed)
        name = without_endings(os.path.basename(os.path.abspath(path or ".")))
        return re.sub(r"[^A-Za-z0-9_.-]+", "_", name).strip("._-") or "text"


def checked_domain(name: str) -> str:
    """Returns the name of a domain, which is also the name of a directory.

    Raises:
      InputError: it holds other letters than those that every file system takes.
    """
    if not _DOMAIN.fullmatch(name):
        raise InputError(
            f"{name!r} is no name for a domain: letters, digits, '_', '.' and '-' only, the "
            "first a letter or digit"
        )
    return name


def relative_name(path: str, root: str) -> str:
    """Returns the name of a file within a directory, with `/` between its parts."""
    return Path(os.path.relpath(path, root)).as_posix()


def tidy_name(path: str) -> str:
    """Returns a path as given, without what leads out of the working directory."""
    return re.sub(r"^(\.\./|/)+", "", Path(os.path.normpath(path)).as_posix())
