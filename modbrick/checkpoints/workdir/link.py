"""Plain names for directories whose own names a library would take for a pattern.

Orbax lists files by patterns that it makes of paths without quoting them: `run[1]` is then another
directory, or none. A backslash becomes a slash in TensorStore, and names that are not UTF-8 it does
not take at all. Such a directory is handed to them by a symbolic link of a plain name.
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from pathlib import Path

from etils import epath

from modbrick.checkpoints.workdir.directory import is_local
from modbrick.errors import InputError

_SPECIAL = re.compile(r"[\[\]*?\\]")


def plain_path(path: epath.Path) -> epath.Path:
    """Returns a path to the same place that libraries take literally: mostly `path` itself.

    The name of the link depends on the path alone, so that all processes of a run have the same:
    Orbax compares them.

    Args:
      path: absolute; its parent exists.

    Raises:
      InputError: a remote path with such characters, or the link cannot be made.
    """
    if not is_local(path):
        if _SPECIAL.search(str(path)):
            raise InputError(
                f"{path}: remote paths are taken for patterns if they hold one of [ ] * ? \\: name "
                "another directory"
            )
        return path
    if _is_plain(str(path)):
        return path
    if _is_plain(path.name):  # it need not exist yet
        return _linked(path.parent) / path.name
    return _linked(path)


def _is_plain(text: str) -> bool:
    return not _SPECIAL.search(text) and not any("\ud800" <= letter <= "\udfff" for letter in text)


def _linked(directory: epath.Path) -> epath.Path:
    """Returns a link to a directory, in a directory of this user's below the temporary one."""
    target = os.fspath(directory)
    home = Path(tempfile.gettempdir()) / f"modbrick-{os.getuid()}"
    link = home / hashlib.sha256(os.fsencode(target)).hexdigest()[:20]
    try:
        home.mkdir(mode=0o700, exist_ok=True)
        if home.is_symlink() or home.stat().st_uid != os.getuid() or not _is_plain(str(link)):
            raise OSError(f"{home} is not this user's")
        if not link.is_symlink() or os.readlink(link) != target:
            fresh = link.with_name(f"{link.name}.{os.getpid()}")
            fresh.unlink(missing_ok=True)
            fresh.symlink_to(target)
            fresh.replace(link)
    except OSError as error:
        raise InputError(
            f"{target!r} holds characters that are taken for a pattern, and a link to it cannot be "
            f"made in {home} ({error}): name another directory, or set TMPDIR"
        ) from error
    return epath.Path(link)
