"""Files below a directory, in an order that does not depend on the file system."""

from __future__ import annotations

import fnmatch
import glob
import os
import re
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field

from modbrick.data.manifest import MANIFEST, SOURCES_FILE
from modbrick.data.preparation.inputs import relative_name
from modbrick.data.tokenizers.tokenizer import TOKENIZER_FILE
from modbrick.paths import expanded

# What shows that a directory was made by this project, and is no text.
_OWN = {
    "a prepared data set": (MANIFEST, SOURCES_FILE, TOKENIZER_FILE),
    "the directory of a run": ("checkpoints", "timeline.jsonl"),
    "a model": (os.path.join("checkpoints", "*", "metadata", "data.json"),),
}


@dataclass
class Exclusions:
    """Files and directories that a user does not want, by pattern.

    A pattern without `/` is compared with every name, one with `/` with paths, as given and within
    the input; `*` stands for any letters, `/` too, `?` for one, `[...]` for some. What is below an
    excluded directory is excluded with it.

    Attributes:
      patterns: such as `*.min.js`, `node_modules`, `docs/old/*`.
      counts: how often each has been met.
    """

    patterns: Sequence[str]
    counts: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._compiled = []
        for pattern in self.patterns:
            of_path = "/" in pattern.rstrip("/")
            tidy = os.path.normpath(expanded(pattern))
            self._compiled.append((pattern, of_path, re.compile(fnmatch.translate(tidy))))

    def cover(self, path: str, name: str) -> bool:
        """Returns whether a path is excluded whose directories are not; `name`: in its input."""
        last, path = os.path.basename(name), os.path.normpath(path)
        for pattern, of_path, compiled in self._compiled:
            if any(map(compiled.match, (name, path) if of_path else (last,))):
                self.counts[pattern] += 1
                return True
        return False


@dataclass(frozen=True)
class Found:
    """A file of an input, or a directory that cannot be read.

    Attributes:
      path: where it is.
      name: its path within the input, with `/`.
      problem: why it cannot be read; None: nothing known.
      named: whether it is the input itself.
    """

    path: str
    name: str
    problem: str | None = None
    named: bool = False


def own_directory(path: str) -> str | None:
    """Returns what a directory is if this project made it; None: it did not."""
    for what, names in _OWN.items():
        if all(glob.glob(name, root_dir=path) for name in names):
            return what
    return None


class Walk:
    """Finds files below directories, each directory once, whatever links lead to it.

    Hidden files and directories (names that begin with a dot) are not looked at. Links to
    directories are followed after everything else, so that a file is found where it is.

    Args:
      exclusions: what to leave out.
      without: names of directories to leave out.

    Attributes:
      passed_over: directories that this project made, with what they are.
    """

    def __init__(self, exclusions: Exclusions, without: Collection[str] = ()):
        self._exclusions = exclusions
        self._without = without
        self._seen: set[tuple[int, int]] = set()
        self.passed_over: dict[str, str] = {}

    def files(self, root: str, name: str = "") -> Iterator[Found]:
        """Yields what is below a directory, whose own name within the input is `name`."""
        pending = [(root, name)]
        links: list[tuple[str, str]] = []
        while pending or links:
            path, within = pending.pop() if pending else links.pop(0)
            if path != root and (what := self._no_text(path, root)):
                self.passed_over[path] = what
                continue
            try:
                entries = self._entries(path)
            except OSError as error:
                yield Found(path, within or ".", f"unreadable directory ({error.strerror})")
                continue
            for entry in entries:
                below = f"{within}/{entry.name}" if within else entry.name
                if entry.name.startswith(".") or self._exclusions.cover(entry.path, below):
                    continue
                if not _is_directory(entry):
                    yield Found(entry.path, below)
                elif entry.name not in self._without:
                    (links if os.path.islink(entry.path) else pending).append((entry.path, below))

    def matching(self, pattern: str, root: str) -> Iterator[Found]:
        """Yields what matches a glob, and what is below directories that do.

        Args:
          pattern: of paths; `**` stands for any number of directories.
          root: the directory in front of its first wildcard.
        """
        patterns = relative_name(pattern, root).split("/")
        if "**" in patterns:
            for file in self.files(root):
                parts = file.name.split("/")
                matched = (_matches(parts[:n], patterns) for n in range(1, len(parts) + 1))
                if file.problem is not None or any(matched):
                    yield file
            return
        for file in _expanded(root, "", patterns):
            if self._passes_over(root, file.name):
                continue
            if file.problem is None and os.path.isdir(file.path):
                yield from self.files(file.path, file.name)
            else:
                yield file

    def _passes_over(self, root: str, name: str) -> bool:
        """Returns whether a path, or a directory that it lies in, is not to be read."""
        parts = name.split("/")
        for count in range(1, len(parts) + 1):
            within = "/".join(parts[:count])
            path = os.path.join(root, within)
            if self._exclusions.cover(path, within):
                return True
            if what := own_directory(path):
                self.passed_over[path] = what
                return True
        return False

    def _no_text(self, path: str, root: str) -> str | None:
        """Returns why a directory below a root is passed over; None: it is not."""
        if os.path.islink(path):
            above = os.path.realpath(path)
            if os.path.commonpath([above, os.path.realpath(root)]) == above:
                return "a link to a directory around it"
        return own_directory(path)

    def _entries(self, path: str) -> list[os.DirEntry[str]]:
        """Lists a directory; nothing if that was done before."""
        status = os.stat(path)
        if (place := (status.st_dev, status.st_ino)) in self._seen:
            return []
        self._seen.add(place)
        with os.scandir(path) as entries:
            return sorted(entries, key=lambda entry: entry.name)


def _is_directory(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False  # a link that cannot be followed: whoever opens it says so


def _expanded(directory: str, name: str, patterns: Sequence[str]) -> Iterator[Found]:
    """Yields the paths that match a glob without `**`, and directories that cannot be searched."""
    first, *rest = patterns
    try:
        entries = sorted(os.listdir(directory))
    except OSError as error:
        yield Found(directory, name or ".", f"unreadable directory ({error.strerror})")
        return
    for entry in entries:
        hidden = entry.startswith(".") and not first.startswith(".")
        if hidden or not fnmatch.fnmatchcase(entry, first):
            continue
        path = entry if directory == "." else os.path.join(directory, entry)
        within = f"{name}/{entry}" if name else entry
        if not rest:
            yield Found(path, within)
        elif os.path.isdir(path):
            yield from _expanded(path, within, rest)


def _matches(parts: Sequence[str], patterns: Sequence[str]) -> bool:
    """Returns whether the parts of a path match those of a glob."""
    if not patterns:
        return not parts
    if patterns[0] == "**":
        return any(_matches(parts[n:], patterns[1:]) for n in range(len(parts) + 1))
    return (
        len(parts) > 0
        and fnmatch.fnmatchcase(parts[0], patterns[0])
        and _matches(parts[1:], patterns[1:])
    )
