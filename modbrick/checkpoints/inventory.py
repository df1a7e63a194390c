"""Sizes and checksums of a checkpoint's files, so that damage is found before anything reads them.

Orbax notices most damage by itself, but late, and with pages of tracebacks of its readers.
"""

from __future__ import annotations

import json
import zlib

import jax
from etils import epath

from modbrick.checkpoints.metadata import DamagedError
from modbrick.checkpoints.workdir.directory import is_local, write_text
from modbrick.errors import listed
from modbrick.parallel.processes import everywhere

_NAME = "files.json"
_CHUNK = 1 << 24


def write_inventory(path: epath.Path, *, checksums_up_to: int | None = None) -> None:
    """Records size and CRC-32 of every file below a complete checkpoint, in `files.json`.

    On remote stores only sizes: reading everything back would cost as much as writing it.

    Args:
      path: of the checkpoint.
      checksums_up_to: only sizes of files that are larger, in bytes; None: there is no such limit.
    """
    inventory = {}
    for file in _files(path):
        name, size = str(file.relative_to(path)), file.stat().length
        small = checksums_up_to is None or size <= checksums_up_to
        inventory[name] = [size, _crc(file) if small and is_local(path) else None]
    inventory.pop(_NAME, None)
    write_text(path / _NAME, json.dumps(inventory, indent=0))


def verify_files(path: epath.Path, *, optimizer: bool = True, sizes_only: bool = False) -> None:
    """Compares a checkpoint's files with its inventory; every process reads its share of them.

    Raises:
      DamagedError: something is missing, or not what was written.
    """
    without = () if optimizer else ("optimizer",)
    share = (jax.process_index(), jax.process_count())
    everywhere(
        lambda: verify_inventory(path, without=without, sizes_only=sizes_only, share=share),
        DamagedError,
    )


def verify_inventory(
    path: epath.Path,
    *,
    without: tuple[str, ...] = (),
    sizes_only: bool = False,
    share: tuple[int, int] = (0, 1),
) -> None:
    """Compares a checkpoint's files with its inventory.

    A checkpoint without inventory passes: whoever wrote it was killed after the checkpoint was
    complete and before its inventory was. Its values are still verified when they are read.

    Args:
      path: of the checkpoint.
      without: parts to leave out (`optimizer`).
      sizes_only: whoever calls compares the values with their checksums.
      share: the i-th of n parts of the files: each process of a run reads one.

    Raises:
      DamagedError: names every file that is missing or not what was written.
    """
    if not (path / _NAME).exists():
        return
    try:
        inventory = json.loads((path / _NAME).read_text())
        expected = {str(name): (size, crc) for name, (size, crc) in inventory.items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise DamagedError(f"{_NAME} is unreadable") from error
    wrong = []
    for name, (size, crc) in list(expected.items())[share[0] :: share[1]]:
        file = path / name
        if name.split("/")[0] in without:
            continue
        if not file.exists():
            wrong.append(f"{name} is missing")
        elif file.stat().length != size:
            wrong.append(f"{name} has {file.stat().length} bytes instead of {size}")
        elif crc is not None and not sizes_only and _crc(file) != crc:
            wrong.append(f"{name} has another checksum")
    if wrong:
        raise DamagedError(listed(wrong, "; "))


def _files(path: epath.Path) -> list[epath.Path]:
    found = []
    for entry in sorted(path.iterdir(), key=str):
        found += _files(entry) if entry.is_dir() else [entry]
    return found


def _crc(file: epath.Path) -> int:
    crc = 0
    with file.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            crc = zlib.crc32(chunk, crc)
    return crc
