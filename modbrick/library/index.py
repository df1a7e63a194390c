"""Index of a library: what its files say about themselves, so that finding one opens none.

The files are the truth. The index notes of each how large it was and when it was written; where
that has changed, or the index is not there or not readable, the file is asked again.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping

from etils import epath

from modbrick.checkpoints.workdir.directory import is_local, write_text
from modbrick.errors import InputError
from modbrick.library.file import StoredBrick, open_brick
from modbrick.schema import from_json, to_json

INDEX = "index.json"
SUFFIX = ".brick"
FORMAT = 1


@dataclasses.dataclass(frozen=True)
class Entry:
    """Record of a brick in a library.

    Attributes:
      name: of the brick, and of its file without the ending.
      kind: of its settings: `lora`, `ia3`, ...
      at: patterns of its sites.
      granularity: see `Manifest`.
      parameters: how many numbers it holds.
      bytes: of its file.
      written: when, in nanoseconds since 1970.
      base: fingerprint of the model that it was trained on; None: it says nothing.
      licence: under which it may be used.
      tags: words to find it by.
      notes: free text.
    """

    name: str
    kind: str
    at: tuple[str, ...]
    granularity: str
    parameters: int
    bytes: int
    written: int
    base: str | None = None
    licence: str = ""
    tags: tuple[str, ...] = ()
    notes: str = ""


@dataclasses.dataclass(frozen=True)
class Index:
    """Record of all bricks of a library, by name, in the order of their names."""

    bricks: Mapping[str, Entry]
    format: int = FORMAT


def read_index(directory: epath.Path) -> Index | None:
    """Reads an index as it was written; None: there is none, or none that is readable."""
    try:
        index = from_json(Index, (directory / INDEX).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, InputError):
        return None  # made anew from the files
    return index if index.format == FORMAT else None


def current_index(directory: epath.Path) -> Index:
    """Returns what the files of a library say, of those that the index does not know for sure.

    Raises:
      InputError: a file that is no brick, or one of another name.
    """
    known = read_index(directory) or Index({})
    bricks = {}
    for path in brick_files(directory):
        name = path.name.removesuffix(SUFFIX)
        try:
            stamp = _stamp(path)
            entry = known.bricks.get(name)
            if entry is None or (entry.bytes, entry.written) != stamp:
                entry = _entry(open_named(path), stamp)
            bricks[name] = entry
        except (OSError, InputError):
            if path.exists():
                raise
            # Another process has removed it since the files were listed.
    return Index(bricks)


def write_index(directory: epath.Path) -> Index:
    """Writes the index as the files are; whoever calls it holds the directory."""
    index = current_index(directory)
    if index != read_index(directory):
        write_text(directory / INDEX, to_json(index))
    return index


def brick_files(directory: epath.Path) -> list[epath.Path]:
    """Lists the files of bricks in a directory, by name; not those that are being written."""
    found = names_in(directory) if directory.exists() else []
    files = (name for name in found if name.endswith(SUFFIX) and name[0] != ".")
    return [directory / name for name in sorted(files)]


def names_in(directory: epath.Path) -> list[str]:
    """Lists what a directory holds, in no order."""
    if is_local(directory):  # a path for each of a thousand files takes longer than all the rest
        return os.listdir(directory)
    return [path.name for path in directory.iterdir()]


def open_named(path: epath.Path) -> StoredBrick:
    """Opens a file that must hold the brick that it is named after.

    Raises:
      InputError: it holds another one, or none.
    """
    brick = open_brick(path)
    if f"{brick.manifest.name}{SUFFIX}" != path.name:
        raise InputError(
            f"{path} holds a brick {brick.manifest.name!r}: take it out of the library and add it"
        )
    return brick


def _entry(brick: StoredBrick, stamp: tuple[int, int]) -> Entry:
    manifest = brick.manifest
    return Entry(
        manifest.name,
        manifest.brick.settings.kind,
        manifest.brick.at,
        manifest.granularity,
        brick.parameters,
        *stamp,
        base=manifest.base.fingerprint if manifest.base else None,
        licence=manifest.licence,
        tags=manifest.tags,
        notes=manifest.notes,
    )


def _stamp(path: epath.Path) -> tuple[int, int]:
    """Returns a file's bytes, and when it was written in nanoseconds."""
    if is_local(path):
        local = os.stat(path)
        return local.st_size, local.st_mtime_ns
    remote = path.stat()
    return remote.length, int(remote.mtime * 10**9)
