"""A library: a directory of bricks, each in a file of its own."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterator, Sequence

from etils import epath

from modbrick.bricks.brick import Brick
from modbrick.bricks.config import check_name
from modbrick.checkpoints.workdir.directory import is_local
from modbrick.checkpoints.workdir.lock import held
from modbrick.errors import InputError
from modbrick.library.file import StoredBrick, open_brick, write_brick
from modbrick.library.index import (
    INDEX,
    SUFFIX,
    Entry,
    brick_files,
    current_index,
    names_in,
    open_named,
    read_index,
    write_index,
)
from modbrick.paths import as_path
from modbrick.schema import nearest
from modbrick.staging import UNFINISHED


@dataclasses.dataclass(frozen=True)
class Library:
    """Bricks by name, `NAME.brick` each, in a local directory or on a remote store.

    Several processes may use one at once. Reading a brick reads its file only.

    Attributes:
      path: of the directory.

    Examples:
        >>> from modbrick.library import Library
        >>> library = Library.create("empty_library")
        >>> len(library)
        0
    """

    path: epath.Path

    @classmethod
    def open(cls, path: epath.PathLike) -> Library:
        """Opens a library.

        Raises:
          InputError: there is none, or the directory holds something else.
        """
        library = cls(as_path(path))
        if not library.path.exists():
            raise InputError(f"there is no library {path}: adding a brick makes one")
        if (others := library._others()) is not None:
            raise InputError(f"{path} is no library, {others}: name another directory")
        return library

    @classmethod
    def create(cls, path: epath.PathLike) -> Library:
        """Opens a library, or one that is made when its first brick comes.

        Raises:
          InputError: the directory holds something else.
        """
        directory = as_path(path)
        return cls.open(path) if directory.exists() else cls(directory)

    def __iter__(self) -> Iterator[str]:
        return iter([file.name.removesuffix(SUFFIX) for file in brick_files(self.path)])

    def __len__(self) -> int:
        return len(brick_files(self.path))

    def __getitem__(self, name: str) -> Brick:
        """Reads a brick; errors as `stored`, and where its values are not finite."""
        return self.stored(name).read()

    def stored(self, name: str) -> StoredBrick:
        """Opens a brick, with its manifest.

        Raises:
          InputError: there is none of that name, or its file is damaged.
        """
        return open_named(self._existing(name))

    def entries(self) -> list[Entry]:
        """Lists what the bricks say about themselves, by name; writes the index if it is stale.

        Raises:
          InputError: a file is damaged.
        """
        index = current_index(self.path)
        writable = not is_local(self.path) or os.access(self.path, os.W_OK)
        if writable and index != read_index(self.path):
            with held(self.path):
                index = write_index(self.path)
        return list(index.bricks.values())

    def find(self, *, tag: str | None = None, like: str | None = None) -> list[Entry]:
        """Lists bricks with a tag, or like a text.

        Args:
          tag: that they have; None: any.
          like: some words; bricks are ranked by how many of these stand in their name, tags and
            notes, whatever their case, and those with none are left out. It compares words, not
            meanings. None: by name.

        Raises:
          InputError: a file is damaged.
        """
        found = [entry for entry in self.entries() if tag is None or tag in entry.tags]
        if like is None:
            return found
        wanted = _words(like)
        scores = {
            entry.name: len(wanted & _words(" ".join([entry.name, *entry.tags, entry.notes])))
            for entry in found
        }
        ranked = sorted(found, key=lambda entry: -scores[entry.name])
        return [entry for entry in ranked if scores[entry.name]]

    def add(self, file: epath.PathLike, *, tags: Sequence[str] = ()) -> StoredBrick:
        """Copies a brick into the library, under the name that its manifest says.

        Args:
          file: of the brick.
          tags: beside those that it has.

        Returns:
          The brick as it lies in the library.

        Raises:
          InputError: the file is not that of a brick, or the library has one of its name.
        """
        stored = open_brick(file)
        manifest = stored.manifest
        with_tags = tuple(dict.fromkeys([*manifest.tags, *tags]))
        self._write(stored, manifest.name, with_tags)
        return self.stored(manifest.name)

    def remove(self, name: str) -> None:
        """Deletes a brick.

        Raises:
          InputError: there is none of that name.
        """
        with held(self.path):
            self._existing(name).unlink()
            write_index(self.path)

    def rename(self, old: str, new: str) -> None:
        """Gives a brick another name, in its manifest too.

        Raises:
          InputError: there is none of that name, its file is damaged, or the library has one of the
            new name.
        """
        stored = open_brick(self._existing(old))
        self._write(stored, new, stored.manifest.tags, instead_of=old)

    def _write(
        self, stored: StoredBrick, name: str, tags: tuple[str, ...], instead_of: str | None = None
    ) -> None:
        """Writes a brick under a name; then deletes the one that it takes the place of."""
        brick = stored.read()
        manifest = dataclasses.replace(stored.manifest, name=name, tags=tags)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            reason = error.strerror or error
            raise InputError(f"{self.path} cannot be made ({reason})") from error
        with held(self.path):
            for left in self.path.glob(f".*{UNFINISHED}"):  # by a process that was killed
                left.unlink()
            replaced = None if instead_of is None else self._existing(instead_of)
            if self._file(name).exists():
                raise InputError(
                    f"{self.path} has a brick {name!r} already: remove it, or rename one of both"
                )
            write_brick(self._file(name), brick, manifest)
            if replaced is not None:
                replaced.unlink()
            write_index(self.path)

    def _file(self, name: str) -> epath.Path:
        check_name(name)
        return self.path / f"{name}{SUFFIX}"

    def _existing(self, name: str) -> epath.Path:
        if not (file := self._file(name)).exists():
            raise InputError(f"{self.path} has no brick {name!r}; {nearest(name, self)}")
        return file

    def _others(self) -> str | None:
        """Says what the directory holds that a library does not; None: it is one, or empty."""
        if not self.path.is_dir():
            return "but a file"
        names = sorted(name for name in names_in(self.path) if not name.startswith("."))
        others = [name for name in names if name != INDEX and not name.endswith(SUFFIX)]
        if others:
            return f"it holds something else ({', '.join(others[:3])})"
        if names == [INDEX] and read_index(self.path) is None:
            return f"it holds something else ({INDEX}, of no library)"
        return None


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.casefold()))
