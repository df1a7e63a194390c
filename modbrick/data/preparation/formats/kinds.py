"""What a source file is, by its name and its first bytes."""

from __future__ import annotations

import itertools
import json
import os
import stat
from collections.abc import Iterable, Sequence
from typing import Literal

from modbrick.data.preparation.formats.json_values import (
    BadRecordError,
    look_up,
    split_values,
)
from modbrick.data.preparation.formats.streams import (
    DAMAGE,
    UnreadableError,
    decompressed,
    unreadable,
)
from modbrick.errors import InputError

# Read as text, one document a file, when a directory or a glob is searched. A file that is named
# itself is read whatever its extension.
_PROSE = """.txt .text .md .rst .tex .org .html .xml .csv .tsv .json .yaml .yml .toml .ini .cfg"""
_CODE = """.py .pyi .pyx .ipynb .c .h .cc .cpp .cxx .hpp .hh .cu .cuh .rs .go .java .kt .scala
    .swift .js .mjs .jsx .ts .tsx .css .php .rb .pl .pm .lua .r .jl .m .hs .ml .mli .clj .ex .exs
    .erl .lisp .el .scm .f90 .f .asm .s .sh .bash .zsh .ps1 .sql .proto .cmake .mk .tf .dart .zig
    .nim .v .sv .vhd .lean"""
TEXT_EXTENSIONS: tuple[str, ...] = (*_PROSE.split(), *_CODE.split())
NO_EXTENSION = "none"
"""Stands for files without an extension among extensions."""

_LINES = (".jsonl", ".ndjson", ".jsonlines")
_PARQUET = (".parquet", ".parq", ".pq")
_COMPRESSED = (".gz", ".gzip", ".bgz", ".zst", ".zstd", ".xz", ".lzma", ".bz2")
_OTHER_COMPRESSIONS = (".lz4", ".br", ".lzo", ".sz", ".snappy", ".z", ".lz")
_ARCHIVES = (".tar", ".tgz", ".tbz2", ".txz", ".tzst", ".zip", ".7z", ".rar")
_RECORD_ENDINGS = (*_LINES, *_PARQUET, ".json", ".txt", *_COMPRESSED)

Kind = Literal["text", "json_lines", "json_values", "parquet"]

_HEAD = 1 << 20


def text_extensions(more: Iterable[str]) -> tuple[str, ...]:
    """Returns `TEXT_EXTENSIONS` and more of them, which may lack their dot; `none`: files without.

    Raises:
      InputError: an empty one.
    """
    return (*TEXT_EXTENSIONS, *map(_extension, more))


def _extension(name: str) -> str:
    name = name.strip().lower().strip("()")
    if not name.strip("."):
        raise InputError(
            "--extensions: one of them is empty; files without an extension are --extensions=none"
        )
    return name if name == NO_EXTENSION else f".{name.lstrip('.')}"


def extension_of(path: str) -> str:
    """Returns the extension of a file, in small letters; `(none)` if it has none."""
    return os.path.splitext(path)[1].lower() or f"({NO_EXTENSION})"


def without_endings(name: str) -> str:
    """Returns the name of a file of records or text without what tells its format."""
    while name.lower().endswith(_RECORD_ENDINGS):
        name = os.path.splitext(name)[0]
    return name


def kind_of(path: str, field: str, extensions: Sequence[str], *, named: bool) -> Kind | None:
    """Returns what a file is; None: nothing to read.

    Args:
      path: of a file.
      field: of the text in records.
      extensions: that are read as text.
      named: by the user, and so read whatever its extension.

    Raises:
      UnreadableError: it cannot be opened, or is none of what can be read.
    """
    name = os.path.basename(path).lower()
    if named:
        _require_known(path, name)
    while name.endswith(_COMPRESSED):
        name = os.path.splitext(name)[0]
    if name.endswith((*_LINES, *_PARQUET)):
        _require_file(path)
        return "json_lines" if name.endswith(_LINES) else "parquet"
    extension = os.path.splitext(name)[1]
    of_text = name.endswith(tuple(e for e in extensions if e != NO_EXTENSION))
    if not (named or of_text or (not extension and NO_EXTENSION in extensions)):
        return None
    _require_file(path)
    if extension != ".json" and extension in TEXT_EXTENSIONS:
        return "text"
    return _kind_within(path, field, json_named=extension == ".json", named=named)


def _require_file(path: str) -> None:
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        raise unreadable(error) from None
    if not stat.S_ISREG(mode):
        raise UnreadableError("a pipe, a socket or a device; write it to a file first")


def _require_known(path: str, name: str) -> None:
    _require_file(path)
    inner = name
    while inner.endswith(_COMPRESSED):
        inner = os.path.splitext(inner)[0]
    if inner.endswith(_ARCHIVES):
        raise UnreadableError("an archive; unpack it, and name the files in it")
    if inner.endswith(_OTHER_COMPRESSIONS):
        raise UnreadableError(
            "compressed in a way that is not read; unpack it, or use .gz, .zst, .xz or .bz2"
        )
    if inner != name and inner.endswith(_PARQUET):
        raise UnreadableError("Parquet compresses itself; unpack the file around it")


def _kind_within(path: str, field: str, *, json_named: bool, named: bool) -> Kind:
    """Returns the kind of a file that may hold JSON, or whose extension says nothing."""
    head, whole = _head(path)
    if head.startswith(b"PAR1"):
        return "parquet"
    text = head.lstrip()
    if text.startswith(b"["):
        records = json_named or text[1:].lstrip().startswith(b"{")
        return "json_values" if records else "text"
    if not text.startswith(b"{"):
        return "text"
    lines = [line for line in text.split(b"\n") if line.strip()]
    complete = lines if whole else lines[:-1]
    objects = [_is_object(line) for line in complete]
    if len(lines) > 1 and (any(objects[:1]) or 0 < len(objects) <= 2 * sum(objects)):
        return "json_lines"
    if not whole:  # one long line, or one long value
        return "json_values" if json_named else "text"
    try:
        first = list(itertools.islice(split_values([text]), 2))
    except (EOFError, UnreadableError):
        return "text"
    if len(first) > 1:
        return "json_values" if json_named or all(map(_is_object, first)) else "text"
    return _single_object(first[0], field, json_named and named)


def _single_object(value: bytes, field: str, data: bool) -> Kind:
    """Returns whether one object is a record, or text such as a config; as data, it must be one."""
    try:
        record = json.loads(value)
        look_up(record, field)
    except (ValueError, RecursionError):
        return "text"
    except BadRecordError as error:
        if data:
            raise UnreadableError(
                f"one JSON object, with {error.reason} ({error.detail}); make it lines or an array "
                "of records, or give it the extension .txt to read it as text"
            ) from None
        return "text"
    return "json_values"


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _head(path: str) -> tuple[bytes, bool]:
    """Returns the first bytes of a file without compression, and whether they are all of it."""
    found = b""
    try:
        with open(path, "rb") as file:
            for chunk in decompressed(file):
                found += chunk
                if len(found) > _HEAD:
                    return found[:_HEAD], False
    except DAMAGE as error:
        if not found:
            raise unreadable(error) from None
        return found, False
    return found, True
