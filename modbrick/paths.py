"""Paths that users give: a home directory is written `~`, whoever reads the path."""

from __future__ import annotations

import os

from etils import epath


def expanded(path: epath.PathLike) -> str:
    """Returns a path with its `~` or `~user` replaced, and a remote one (`gs://`) as it is."""
    text = os.fspath(path)
    return text if "://" in text else os.path.expanduser(text)


def as_path(path: epath.PathLike) -> epath.Path:
    """Returns an absolute path, local or remote (`gs://`)."""
    text = expanded(path)
    return epath.Path(text if "://" in text else os.path.abspath(text))
