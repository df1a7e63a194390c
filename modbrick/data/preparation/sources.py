"""Source files of a data set, found in the inputs that a user names."""

from __future__ import annotations

import dataclasses
import difflib
import os
import sysconfig
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from modbrick.data.manifest import Split
from modbrick.data.preparation.formats.kinds import (
    TEXT_EXTENSIONS,
    Kind,
    extension_of,
    kind_of,
)
from modbrick.data.preparation.formats.streams import UnreadableError, unreadable
from modbrick.data.preparation.inputs import (
    STANDARD_LIBRARY,
    WILDCARDS,
    Input,
    checked_domain,
    tidy_name,
)
from modbrick.data.preparation.walk import Exclusions, Found, Walk, own_directory
from modbrick.errors import InputError

# Not prose or code that a person wrote: tests, tables, generated indices, this machine's build
# settings.
_LIBRARY_WITHOUT = [
    "test",
    "tests",
    "idle_test",
    "encodings",
    "pydoc_data",
    "site-packages",
    "dist-packages",
    "__pycache__",
]
_LIBRARY_WITHOUT_FILES = ("_sysconfigdata",)


@dataclass(frozen=True)
class Source:
    """One file to read.

    Attributes:
      path: where it is.
      name: path relative to its input, so the same files elsewhere come in the same order.
      domain: of its documents.
      kind: what it is.
      size: bytes.
      split: all its documents go here; None: by hash.
      named: whether the user named it, and did not have it found.
      problem: why it cannot be read; None: nothing known.
    """

    path: str
    name: str
    domain: str
    kind: Kind
    size: int
    split: Split | None
    named: bool = False
    problem: str | None = None


@dataclass(frozen=True)
class Listing:
    """Outcome of a search for source files.

    Attributes:
      sources: those that are all held out first, then by domain and name; each once a domain.
      left_aside: how many files were left aside, by extension.
      excluded: how many files and directories each pattern excluded.
      passed_over: directories of data sets, runs and models, with what they are.
      held_out: training files that a held-out input names too, and that are only held out.
    """

    sources: tuple[Source, ...]
    left_aside: Mapping[str, int]
    excluded: Mapping[str, int]
    passed_over: Mapping[str, str]
    held_out: int


def list_sources(
    inputs: Sequence[Input],
    *,
    domain: str | None = None,
    extensions: Sequence[str] = TEXT_EXTENSIONS,
    exclude: Sequence[str] = (),
    text_field: str = "text",
) -> Listing:
    """Finds the files of all inputs, in an order that does not depend on the file system.

    Hidden files and directories (names that begin with a dot) are not searched, and neither are
    data sets, runs and models of this project. What cannot be read is found with its problem,
    unless the user named it.

    Args:
      inputs: what to look through.
      domain: for inputs without a domain of their own.
      extensions: read as text when a directory or glob is searched.
      exclude: patterns of what a search leaves out; see `Exclusions`.
      text_field: of records.

    Raises:
      InputError: nothing at a path, nothing to read in it, or something that is not read.
    """
    default = None if domain is None else checked_domain(domain)
    exclusions = Exclusions(exclude)
    found: dict[tuple[str, str], Source] = {}
    aside: dict[str, str] = {}
    passed_over: dict[str, str] = {}
    held_out: set[str] = set()
    both: set[str] = set()
    for item in sorted(inputs, key=lambda item: item.split != "held_out"):
        name = item.domain or default or item.domain_of_path
        walk = Walk(exclusions, _LIBRARY_WITHOUT if item.path == STANDARD_LIBRARY else ())
        some, unknown = False, set()
        for file in _files(item.path, walk):
            real = os.path.realpath(file.path)
            source = _source(file, item, name, extensions, text_field)
            if source is None:
                unknown.add(extension_of(file.path))
                aside[real] = extension_of(file.path)
                continue
            some = True
            if item.split == "held_out":
                held_out.add(real)
            elif real in held_out:
                both.add(real)
                continue
            found.setdefault((name, real), source)
        passed_over |= walk.passed_over
        if not some:
            remarks = [*sorted(unknown), *(f"{w} in {p}" for p, w in walk.passed_over.items())]
            raise InputError(
                f"{item.path}: holds no file to read (found: "
                f"{', '.join(remarks) or 'no file at all'}); known are text and source files, "
                ".jsonl, .json and .parquet, also compressed; add others with --extensions"
            )
    sources = sorted(
        found.values(), key=lambda s: (s.split != "held_out", s.domain, s.name, s.path)
    )
    excluded = {pattern: exclusions.counts[pattern] for pattern in exclude}
    return Listing(tuple(sources), Counter(aside.values()), excluded, passed_over, len(both))


def _files(path: str, walk: Walk) -> Iterator[Found]:
    if path == STANDARD_LIBRARY:
        yield from _standard_library(walk)
    elif os.path.isdir(path):
        if what := own_directory(path):
            raise InputError(f"{path}: {what}; name the texts that it was made of")
        for file in walk.files(path):
            if file.path == path:
                raise InputError(f"{path}: {file.problem}")
            yield file
    elif os.path.exists(path):
        yield Found(path, tidy_name(path), named=True)
    elif match := WILDCARDS.search(path):
        some = False
        for file in walk.matching(path, os.path.dirname(path[: match.start()]) or "."):
            some = True
            yield file
        if not some:
            raise InputError(f"{path}: no file matches")
    elif os.path.lexists(path):
        raise InputError(f"{path}: a link to {os.readlink(path)}, where nothing is")
    else:
        raise InputError(f"{path}: no such file or directory{_near(path)}")


def _standard_library(walk: Walk) -> Iterator[Found]:
    root = sysconfig.get_paths()["stdlib"]
    some = False
    for file in walk.files(root):
        name = os.path.basename(file.path)
        if name.endswith(".py") and not name.startswith(_LIBRARY_WITHOUT_FILES):
            some = True
            yield file
    if not some:
        raise InputError(
            f"{STANDARD_LIBRARY} this Python keeps no library sources in {root}; name a "
            "directory of text files instead"
        )


def _source(
    file: Found, item: Input, domain: str, extensions: Sequence[str], text_field: str
) -> Source | None:
    """Returns a file as a source; None: it is not to be read."""
    source = Source(
        file.path, file.name, domain, "text", 0, item.split, file.named, problem=file.problem
    )
    if file.problem is not None:
        return source
    try:
        kind = kind_of(file.path, text_field, extensions, named=file.named)
        if kind is None:
            return None
        return dataclasses.replace(source, kind=kind, size=os.path.getsize(file.path))
    except UnreadableError as error:
        problem = str(error)
    except OSError as error:
        problem = str(unreadable(error))
    if file.named:
        raise InputError(f"{file.path}: {problem}")
    return dataclasses.replace(source, problem=problem)


def _near(path: str) -> str:
    parent = os.path.dirname(path) or "."
    if not os.path.isdir(parent):
        return ""
    try:
        names = os.listdir(parent)
    except OSError:
        return ""  # a remark less
    close = difflib.get_close_matches(os.path.basename(path), names, n=1, cutoff=0.6)
    return f"; did you mean {os.path.join(os.path.dirname(path), close[0])!r}?" if close else ""
