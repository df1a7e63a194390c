"""Commands timed with a cold page cache, each in a process of its own, with its peak memory.

Files to be read are written back and dropped from the page cache before the clock starts. Peak
memory is the largest resident set of the process, as the kernel counts it, with mapped files in it.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from modbrick.errors import InputError

ROOT = Path(__file__).resolve().parents[2]
CONVERT = ROOT / "scripts/convert_checkpoint.py"

COPY = """
import os, shutil, sys
source, target = sys.argv[1:]
for above, _, files in os.walk(source):
    there = os.path.join(target, os.path.relpath(above, source))
    os.makedirs(there, exist_ok=True)
    for name in files:
        shutil.copyfile(os.path.join(above, name), os.path.join(there, name))
        with open(os.path.join(there, name), "rb+") as file:
            os.fsync(file.fileno())
"""

# A process starts with the peak of the one that starts it, so a small one stands in between.
LAUNCH = """
import json, os, subprocess, sys
child = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL)
_, status, usage = os.wait4(child.pid, 0)
print(json.dumps([os.waitstatus_to_exitcode(status), usage.ru_maxrss * 1024]))
"""


@dataclasses.dataclass(frozen=True)
class Measured:
    """One command: how long it took, and its largest resident set."""

    seconds: float
    peak_bytes: int


def timed(command: list[str], reads: Path) -> Measured:
    """Runs a command after dropping what it reads from the page cache."""
    drop_from_cache(reads)
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    launch = [sys.executable, "-c", LAUNCH, *command]
    began = time.perf_counter()
    output = subprocess.run(launch, env=environment, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - began
    status, peak = json.loads(output.stdout)
    if status:
        sys.stderr.write(output.stderr)
        raise InputError(f"{' '.join(command[:4])} ended with status {status}")
    return Measured(seconds, peak)


def drop_from_cache(directory: Path) -> None:
    """Writes a directory's files back and drops them from the page cache."""
    for path in directory.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def beside_a_copy(
    direction: str, source: Path, target: Path, size: int, options: Sequence[str] = ()
) -> dict[str, float]:
    """Times a conversion and, before it, a copy of what it reads.

    Args:
      direction: `import` or `export`.
      source: of the conversion; the folder that it lies in is copied.
      target: of the conversion; it must not exist.
      size: bytes that are read.
      options: flags of the conversion.

    Raises:
      InputError: the conversion fails.
    """
    read = source if source.is_dir() else source.parent
    copy = target.parent / "copy"
    copied = timed([sys.executable, "-c", COPY, str(read), str(copy)], read)
    shutil.rmtree(copy)
    say(f"{direction}: {rate(size, copied.seconds)} MB/s copying; converting")
    converted = timed(
        [sys.executable, str(CONVERT), direction, str(source), str(target), *options], read
    )
    return {
        "seconds": round(converted.seconds, 2),
        "megabytes_per_second": rate(size, converted.seconds),
        "copy_seconds": round(copied.seconds, 2),
        "copy_megabytes_per_second": rate(size, copied.seconds),
        "share_of_copy_speed": round(copied.seconds / converted.seconds, 3),
        "peak_resident_mebibytes": round(converted.peak_bytes / 2**20, 1),
    }


def rate(size: int, seconds: float) -> float:
    """Returns megabytes (10^6 bytes) per second."""
    return round(size / seconds / 1e6, 1)


def say(text: str) -> None:
    """Prints how far it is, on standard error."""
    print(text, file=sys.stderr, flush=True)
