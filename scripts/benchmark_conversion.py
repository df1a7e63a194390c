r"""Measures conversion: speed beside copying the same bytes on the same disk, and peak memory.

    python scripts/benchmark_conversion.py --directory=DIR --json=docs/figures/conversion.json

Writes a random checkpoint of the shape of MoLM-700M-8B (bfloat16, 16 GB; --size=small: 6 MB) below
DIR, imports it and exports it again with scripts/convert_checkpoint.py, each in a process of its
own, and copies the same files beside each. DIR needs room for four times the size, and is left as
it was. The exported tensors are compared with the first ones, byte for byte.

How it is measured: before each of the four, the files to be read are written back and dropped from
the page cache (posix_fadvise); the clock stops when everything is on the disk (fsync; TensorStore
does so by itself). A conversion's time is that of the whole command, start of Python and JAX
included. Peak memory is the largest resident set of the process, as the kernel counts it, with
mapped files in it.

The last line of standard output is one JSON object.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from modbrick.command_line import run
from modbrick.config import ModelConfig
from modbrick.convert.correspondence import correspondence
from modbrick.convert.format import Translation
from modbrick.convert.moduleformer import FORMAT
from modbrick.convert.shards import INDEX, SafetensorsWriter, TensorSpec, divide, index_text
from modbrick.convert.source import open_directory
from modbrick.errors import InputError
from modbrick.families import moduleformer

DIRECTORY = flags.DEFINE_string("directory", None, "Where to write; none: the temporary directory.")
SIZE = flags.DEFINE_enum("size", "full", ["full", "small"], "Of the model.")
JSON = flags.DEFINE_string("json", None, "File for the result too.")

CONVERT = Path(__file__).parent / "convert_checkpoint.py"
SHARD = {"full": 5_000_000_000, "small": 2_000_000}
BLOCK = 16 << 20
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


@dataclasses.dataclass(frozen=True)
class Measured:
    """One command: how long it took, and its largest resident set."""

    seconds: float
    peak_bytes: int


def main(argv: Sequence[str]) -> None:
    """Measures both directions."""
    del argv
    with tempfile.TemporaryDirectory(dir=DIRECTORY.value, prefix="conversion-") as directory:
        report = measure(Path(directory))
    text = json.dumps(report)
    if JSON.value is not None:
        Path(JSON.value).write_text(json.dumps(report, indent=2) + "\n")
    print(text)


def measure(directory: Path) -> dict[str, Any]:
    """Writes, converts and compares in an empty directory; returns the figures."""
    first, ours, back, copy = (directory / name for name in ("first", "ours", "back", "copy"))
    size = write_checkpoint(first, model_of_size(SIZE.value), SHARD[SIZE.value])
    report: dict[str, Any] = {
        "model": "MoLM-700M-8B" if SIZE.value == "full" else "small",
        "bytes": size,
        "python": sys.version.split()[0],
        "jax": jax.__version__,
        "processors": os.cpu_count(),
        "load_average_before": round(os.getloadavg()[0], 2),
    }
    for direction, source, target, more in (
        ("import", first, ours, []),
        ("export", ours, back, ["--format=moduleformer", f"--max_shard_size={SHARD[SIZE.value]}"]),
    ):
        say(f"copying what the {direction} reads")
        copied = timed([sys.executable, "-c", COPY, str(source), str(copy)], source)
        shutil.rmtree(copy)
        say(f"{direction}: {rate(size, copied.seconds)} MB/s copying; converting")
        command = [sys.executable, str(CONVERT), direction, str(source), str(target), *more]
        converted = timed(command, source)
        report[direction] = {
            "seconds": round(converted.seconds, 2),
            "megabytes_per_second": rate(size, converted.seconds),
            "copy_seconds": round(copied.seconds, 2),
            "copy_megabytes_per_second": rate(size, copied.seconds),
            "share_of_copy_speed": round(copied.seconds / converted.seconds, 3),
            "peak_resident_mebibytes": round(converted.peak_bytes / 2**20, 1),
        }
        say(f"{direction}: {report[direction]}")
    shutil.rmtree(ours)
    compare(first, back)
    report["byte_equal"] = True
    return report


def model_of_size(size: str) -> ModelConfig:
    """Returns the MoLM-700M-8B, or a small model of its kind."""
    full = size == "full"
    return moduleformer(
        vocabulary=50_295 if full else 500,
        width=1024 if full else 64,
        layers=48 if full else 4,
        heads=1,
        attention_width=1024 if full else 64,
        feed_forward_width=2048 if full else 128,
        attention_experts=16,
        feed_forward_experts=32,
    )


def write_checkpoint(directory: Path, model: ModelConfig, largest: int) -> int:
    """Writes random bfloat16 weights as the original library would; returns their bytes."""
    assert FORMAT.write_config is not None
    directory.mkdir()
    bfloat16 = np.dtype(jnp.bfloat16)
    places = correspondence(FORMAT, model).places
    tensors = {name: TensorSpec(place.shape, bfloat16) for name, place in places.items()}
    files = divide(tensors, largest)
    config = FORMAT.write_config(Translation(model)) | {
        "model_type": FORMAT.model_type,
        "architectures": [FORMAT.architecture],
        "torch_dtype": "bfloat16",
    }
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    (directory / INDEX).write_text(index_text(tensors, files))
    draw = np.random.default_rng(0)
    for file, names in files.items():
        with SafetensorsWriter(directory / file, {name: tensors[name] for name in names}) as writer:
            for name in names:
                for block in random_blocks(draw, tensors[name].nbytes // 2):
                    writer.write(block)
    return sum(spec.nbytes for spec in tensors.values())


def random_blocks(draw: np.random.Generator, count: int) -> Iterator[np.ndarray]:
    """Yields random finite bfloat16 values: any sign and fraction, magnitudes below two."""
    for start in range(0, count, BLOCK // 2):
        bits = np.frombuffer(draw.bytes(2 * min(BLOCK // 2, count - start)), np.uint16)
        yield (bits & np.uint16(0xBFFF)).view(jnp.bfloat16)


def timed(command: list[str], reads: Path) -> Measured:
    """Runs a command after dropping what it reads from the page cache."""
    drop_from_cache(reads)
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(CONVERT.parents[1])}
    began = time.perf_counter()
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as child:
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.perf_counter() - began
    if child.returncode:
        raise InputError(f"{' '.join(command[:4])} ended with status {child.returncode}")
    return Measured(seconds, usage.ru_maxrss * 1024)


def drop_from_cache(directory: Path) -> None:
    """Writes a directory's files back and drops them from the page cache."""
    for path in directory.rglob("*"):
        if path.is_file():
            with opened(path) as descriptor:
                os.fsync(descriptor)
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)


@contextmanager
def opened(path: Path) -> Iterator[int]:
    """Opens a file for reading, by its descriptor."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def compare(one: Path, other: Path) -> None:
    """Compares the tensors of two directories byte for byte.

    Raises:
      InputError: they differ.
    """
    left, right = open_directory(one).tensors, open_directory(other).tensors
    if left.keys() != right.keys():
        raise InputError(f"{one} and {other} hold different tensors")
    for name, tensor in left.items():
        same = (tensor.shape, tensor.dtype) == (right[name].shape, right[name].dtype)
        if not same or not np.array_equal(
            tensor.read().view(np.uint16), right[name].read().view(np.uint16)
        ):
            raise InputError(f"{name} differs between {one} and {other}")


def rate(size: int, seconds: float) -> float:
    """Returns megabytes (10^6 bytes) per second."""
    return round(size / seconds / 1e6, 1)


def say(text: str) -> None:
    """Tells how far it is."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    run(main)
