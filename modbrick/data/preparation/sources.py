"""Files that a data set is made of: inputs as a user names them, sources as they are read."""

from __future__ import annotations

import difflib
import glob
import os
import re
import sysconfig
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from modbrick.data.manifest import Split
from modbrick.errors import InputError

STANDARD_LIBRARY = "stdlib:"

# Read as text, one document a file, when a directory or a glob is searched. A file that is named
# itself is read whatever its extension.
_PROSE = """.txt .text .md .rst .tex .org .html .xml .csv .tsv .json .yaml .yml .toml .ini .cfg"""
_CODE = """.py .pyi .pyx .ipynb .c .h .cc .cpp .cxx .hpp .hh .cu .cuh .rs .go .java .kt .scala
    .swift .js .mjs .jsx .ts .tsx .css .php .rb .pl .pm .lua .r .jl .m .hs .ml .mli .clj .ex .exs
    .erl .lisp .el .scm .f90 .f .asm .s .sh .bash .zsh .ps1 .sql .proto .cmake .mk .tf .dart .zig
    .nim .v .sv .vhd .lean"""
TEXT_EXTENSIONS: tuple[str, ...] = (*_PROSE.split(), *_CODE.split())
JSON_LINES_EXTENSIONS = (".jsonl", ".ndjson")
COMPRESSIONS = ("", ".gz", ".zst")
PARQUET_EXTENSIONS = (".parquet",)

# Not prose or code that a person wrote: tests, tables, generated indices, this machine's build
# settings.
_LIBRARY_WITHOUT = """test tests idle_test encodings pydoc_data site-packages dist-packages
    __pycache__"""
_LIBRARY_WITHOUT_DIRECTORIES = frozenset(_LIBRARY_WITHOUT.split())
_LIBRARY_WITHOUT_FILES = ("_sysconfigdata",)
_WILDCARDS = re.compile(r"[*?\[]")
_DOMAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")

Kind = Literal["text", "json_lines", "parquet"]


def text_extensions(more: Iterable[str]) -> tuple[str, ...]:
    """Returns `TEXT_EXTENSIONS` and more of them, which may lack their dot."""
    return (*TEXT_EXTENSIONS, *(f".{name.lstrip('.').lower()}" for name in more))


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
        whole = os.path.expanduser(text)
        if not equals or os.path.exists(whole):
            return cls(whole, None, split)
        if not path:
            raise InputError(f"--input={text}: no path after the domain; write DOMAIN=PATH")
        return cls(os.path.expanduser(path), _checked_domain(name), split)


@dataclass(frozen=True)
class Source:
    """One file to read.

    Attributes:
      name: path relative to its input; its hash decides the split, so the same files elsewhere
        split alike.
    """

    path: str
    name: str
    domain: str
    kind: Kind
    size: int
    split: Split | None


def list_sources(
    inputs: Sequence[Input],
    *,
    domain: str | None = None,
    extensions: Sequence[str] = TEXT_EXTENSIONS,
) -> tuple[tuple[Source, ...], Mapping[str, int]]:
    """Finds the files of all inputs, in an order that does not depend on the file system.

    Hidden files and directories (names that begin with a dot) are not searched.

    Args:
      inputs: what to look through.
      domain: for inputs without a domain of their own.
      extensions: read as text when a directory or glob is searched.

    Returns:
      The sources, each once a domain; and how many files were left aside, by extension.

    Raises:
      InputError: nothing at a path, or nothing to read in it.
    """
    default = None if domain is None else _checked_domain(domain)
    left_aside: Counter[str] = Counter()
    found: dict[tuple[str, str], Source] = {}
    for item in inputs:
        name = item.domain or default or _domain_of_path(item.path)
        some = False
        for path, relative, searched in _files(item.path):
            kind = _kind(path, extensions, searched)
            if kind is None:
                left_aside[os.path.splitext(path)[1].lower() or "(none)"] += 1
                continue
            some = True
            key = (name, os.path.realpath(path))
            if key not in found:
                size = os.path.getsize(path) if os.path.exists(path) else 0
                found[key] = Source(path, relative, name, kind, size, item.split)
            elif found[key].split != item.split:
                raise InputError(
                    f"{path}: named both as training and as held-out input; name it once"
                )
        if not some:
            seen = ", ".join(sorted(left_aside)) or "no file at all"
            raise InputError(
                f"{item.path}: holds no file to read (found: {seen}); known are text and source "
                "files, .jsonl, .jsonl.gz, .jsonl.zst and .parquet; add others with --extensions"
            )
    sources = sorted(found.values(), key=lambda s: (s.domain, s.name, s.path))
    return tuple(sources), left_aside


def _files(path: str) -> Iterator[tuple[str, str, bool]]:
    """Yields path, name relative to the input, and whether it was found by searching."""
    if path == STANDARD_LIBRARY:
        yield from _standard_library()
    elif os.path.isdir(path):
        for file in _walk(path, frozenset()):
            yield file, _relative(file, path), True
    elif os.path.exists(path):
        yield path, _tidy(path), False
    elif _WILDCARDS.search(path):
        matches = sorted(glob.glob(path, recursive=True))
        if not matches:
            raise InputError(f"{path}: no file matches")
        fixed = os.path.dirname(path[: _WILDCARDS.search(path).start()])  # type: ignore[union-attr]
        for match in matches:
            if os.path.isfile(match) or not os.path.exists(match):
                yield match, _relative(match, fixed or "."), True
    else:
        raise InputError(f"{path}: no such file or directory{_near(path)}")


def _standard_library() -> Iterator[tuple[str, str, bool]]:
    root = sysconfig.get_paths()["stdlib"]
    some = False
    for file in _walk(root, _LIBRARY_WITHOUT_DIRECTORIES):
        name = os.path.basename(file)
        if name.endswith(".py") and not name.startswith(_LIBRARY_WITHOUT_FILES):
            some = True
            yield file, _relative(file, root), True
    if not some:
        raise InputError(
            f"{STANDARD_LIBRARY} this Python keeps no library sources in {root}; name a "
            "directory of text files instead"
        )


def _walk(root: str, without: frozenset[str]) -> Iterator[str]:
    for directory, below, files in os.walk(root):
        below[:] = sorted(d for d in below if not d.startswith(".") and d not in without)
        for file in sorted(files):
            path = os.path.join(directory, file)
            # A dangling link is found too: what cannot be read is reported, not passed over.
            if not file.startswith(".") and (os.path.isfile(path) or not os.path.exists(path)):
                yield path


def _kind(path: str, extensions: Sequence[str], searched: bool) -> Kind | None:
    lower = path.lower()
    if lower.endswith(tuple(e + c for e in JSON_LINES_EXTENSIONS for c in COMPRESSIONS)):
        return "json_lines"
    if lower.endswith(PARQUET_EXTENSIONS):
        return "parquet"
    if not searched or lower.endswith(tuple(extensions)):
        return "text"
    return None


def _relative(path: str, root: str) -> str:
    return Path(os.path.relpath(path, root)).as_posix()


def _tidy(path: str) -> str:
    """Returns a path as given, without what leads out of the working directory."""
    return re.sub(r"^(\.\./|/)+", "", Path(os.path.normpath(path)).as_posix())


def _domain_of_path(path: str) -> str:
    if path == STANDARD_LIBRARY:
        return "stdlib"
    match = _WILDCARDS.search(path)
    fixed = os.path.dirname(path[: match.start()]) if match and not os.path.exists(path) else path
    name = os.path.basename(os.path.abspath(fixed or "."))
    name = re.sub(r"(\.(jsonl|ndjson|parquet|txt|gz|zst))+$", "", name, flags=re.IGNORECASE)
    name = re.sub(r"[^A-Za-z0-9_.-]+", "_", name).strip("._-")
    return name or "text"


def _checked_domain(name: str) -> str:
    if not _DOMAIN.fullmatch(name):
        raise InputError(
            f"{name!r} is no name for a domain: letters, digits, '_', '.' and '-' only, the "
            "first a letter or digit"
        )
    return name


def _near(path: str) -> str:
    parent = os.path.dirname(path) or "."
    if not os.path.isdir(parent):
        return ""
    close = difflib.get_close_matches(os.path.basename(path), os.listdir(parent), n=1, cutoff=0.6)
    return f"; did you mean {os.path.join(os.path.dirname(path), close[0])!r}?" if close else ""
