"""The directory of a run or a model, and what may lie in it.

`WORKDIR/checkpoints/STEP` is a complete checkpoint; names with a suffix are unfinished, half
deleted or damaged ones. `WORKDIR/tokenizer/tokenizer.json` is the tokenizer.
"""

from __future__ import annotations

import contextlib
import time

from etils import epath

from modbrick.errors import InputError

CHECKPOINTS = "checkpoints"
DAMAGED = ".damaged"
DELETED = ".deleted"
TEMPORARY = ".orbax-checkpoint-tmp"
_COMMITTED = "commit_success.txt"
VISIBLE_WITHIN = 60.0
"""Seconds until every machine sees what one of them wrote to a shared file system."""
STRAGGLERS = 0.5
"""Seconds for which threads of Orbax go on writing after another one failed."""


def is_local(path: epath.Path) -> bool:
    """Returns whether a path is on a file system, where renaming is atomic and cheap."""
    return "://" not in str(path)


def require_own(directory: epath.Path) -> None:
    """Checks that a directory is absent, empty (but for hidden files), or a run's or model's.

    Raises:
      InputError: it holds something else.
    """
    root = directory / CHECKPOINTS
    if not directory.exists():
        return
    if not directory.is_dir():
        raise InputError(f"{directory} is a file: name a directory")
    if not root.exists():
        others = sorted(p.name for p in directory.iterdir() if not p.name.startswith("."))
        if others:
            raise InputError(
                f"{directory} holds something else ({', '.join(others[:3])}): name a new or empty "
                "directory, or one of a run to continue"
            )
        return
    for path in root.iterdir():
        name = path.name.removesuffix(DAMAGED).removesuffix(DELETED).split(TEMPORARY)[0]
        if not name.isdecimal() and not path.name.startswith("."):
            raise InputError(
                f"{root} holds something that is no checkpoint ({path.name}): name another one"
            )


def complete_steps(root: epath.Path) -> list[int]:
    """Lists the steps of the complete checkpoints directly in `root`, ascending."""
    if not root.is_dir():
        return []
    return sorted(int(p.name) for p in root.iterdir() if p.name.isdecimal() and is_complete(p))


def clean(root: epath.Path) -> list[str]:
    """Removes what killed processes left unfinished or half deleted; returns unfinished steps."""
    unfinished = []
    for path in root.iterdir() if root.is_dir() else ():  # an empty one is none on a remote store
        if path.name.endswith(DELETED):
            remove(path)
        elif TEMPORARY in path.name or (path.name.isdecimal() and not is_complete(path)):
            unfinished.append(path.name.split(".")[0])
            remove(path)
    return unfinished


def remove(path: epath.Path) -> None:
    """Removes a directory, if it is there."""
    if path.exists():
        path.rmtree()


def remove_unfinished(path: epath.Path) -> None:
    """Removes what a failed save left of a checkpoint: a full disk needs the room.

    Other threads of the save may still write for a moment, and make anew what was removed.
    """
    end = time.monotonic() + STRAGGLERS
    while True:
        for left in (path.with_name(path.name + TEMPORARY), path):
            with contextlib.suppress(OSError):  # somebody writes to it just now
                remove(left)
        if time.monotonic() > end:
            return
        time.sleep(STRAGGLERS / 10)


def delete_checkpoint(path: epath.Path) -> None:
    """Deletes a checkpoint so that, killed at any moment, it is whole or no checkpoint any more."""
    if is_local(path):  # elsewhere renaming copies every byte, and old ones are never read first
        path = path.rename(path.with_name(path.name + DELETED))
    path.rmtree()


def move_aside(path: epath.Path) -> None:
    """Renames a damaged checkpoint, so that it is out of the way and not lost."""
    target = path.with_name(path.name + DAMAGED)
    remove(target)
    path.rename(target)


def write_text(path: epath.Path, text: str) -> None:
    """Writes a file as a whole or not at all (remote stores do so by themselves).

    Raises:
      InputError: it cannot be written.
    """
    if not is_local(path):
        path.write_text(text)
        return
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.write_text(text)
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise InputError(
            f"{path} cannot be written ({error.strerror or error}): make room, or name another "
            "directory"
        ) from error


def is_complete(path: epath.Path) -> bool:
    """Returns whether Orbax finished a checkpoint; where its name is no proof, a file is."""
    return is_local(path) or (path / _COMMITTED).exists()


def require_shared(root: epath.Path) -> None:
    """Checks that this process sees the directory that the first one has made.

    File systems of a network may take as long to show what another machine has made; of a remote
    store there is only one, and empty directories it has none.

    Raises:
      InputError: it does not appear in time.
    """
    patience = time.monotonic() + VISIBLE_WITHIN
    while is_local(root) and not root.is_dir():
        if time.monotonic() > patience:
            raise InputError(
                f"{root.parent} is not the directory of that name that process 0 has just made: "
                "all processes of a run need the same one"
            )
        time.sleep(0.5)
