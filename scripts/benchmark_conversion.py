r"""Measures conversion: speed beside copying the same bytes on the same disk, and peak memory.

    python scripts/benchmark_conversion.py --directory=DIR --json=docs/figures/conversion.json
    python scripts/benchmark_conversion.py --directory=DIR --size=medium \
        --formats=moduleformer,llama,... --json=docs/figures/conversion_formats.json
    python scripts/benchmark_conversion.py --directory=DIR --source=FILE.gguf

Writes a random checkpoint in bfloat16 below DIR: of the shape of MoLM-700M-8B (--size=full, 16 GB),
or a format's small model under --fixtures, made wider until it has half a gigabyte (medium). It is
imported and exported again with scripts/convert_checkpoint.py, each in a process of its own, and
the same files are copied beside each. DIR needs room for four times the size, and is left as it
was. Exported tensors are compared with the first ones, byte for byte. With --source: its import.

How it is measured: before each of the four, the files to be read are written back and dropped from
the page cache (posix_fadvise); the clock stops when everything is on the disk (fsync; TensorStore
does so by itself). A conversion's time is that of the whole command, start of Python and JAX
included. Peak memory is the largest resident set of the process, as the kernel counts it, with
mapped files in it.

The last line of standard output is one JSON object.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from modbrick.command_line import check_output, run
from modbrick.config import ModelConfig
from modbrick.config.families import moduleformer
from modbrick.convert import format_named, open_checkpoint
from modbrick.convert.containers.shards import (
    INDEX,
    SafetensorsWriter,
    TensorSpec,
    divide,
    index_text,
)
from modbrick.convert.correspondence import correspondence
from modbrick.convert.format import Format, Translation
from modbrick.convert.huggingface.directory import open_directory
from modbrick.errors import InputError
from modbrick.layers.functional import parameter_table

DIRECTORY = flags.DEFINE_string("directory", None, "Where to write; none: the temporary directory.")
SIZE = flags.DEFINE_enum("size", "full", ["full", "medium", "small"], "Of the model.")
FORMATS = flags.DEFINE_list("formats", ["moduleformer"], "Formats to measure, with --size=medium.")
SOURCE = flags.DEFINE_string("source", None, "Measure the import of this instead.")
FIXTURES = flags.DEFINE_string("fixtures", "tests/fixtures", "Directory of FORMAT/MODEL.")
JSON = flags.DEFINE_string("json", None, "File for the result too.")

CONVERT = Path(__file__).parent / "convert_checkpoint.py"
SHARD = {"full": 5_000_000_000, "medium": 200_000_000, "small": 2_000_000}
MEDIUM = 500_000_000
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


def main(argv: Sequence[str]) -> None:
    """Measures both directions."""
    del argv
    check_output(JSON)
    report: dict[str, Any] = {
        "python": sys.version.split()[0],
        "jax": jax.__version__,
        "date": datetime.date.today().isoformat(),
        "processors": os.cpu_count(),
        "load_average_before": round(os.getloadavg()[0], 2),
    }
    with tempfile.TemporaryDirectory(dir=DIRECTORY.value, prefix="conversion-") as directory:
        if SOURCE.value is not None:
            report["import"] = measure_source(Path(SOURCE.value), Path(directory))
        else:
            for name in FORMATS.value:
                form, model = format_named(name), model_of_size(SIZE.value, name)
                report[name] = measure(form, model, Path(directory) / name)
    if JSON.value is not None:
        Path(JSON.value).write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report))


def measure(form: Format, model: ModelConfig, directory: Path) -> dict[str, Any]:
    """Writes, converts and compares in a new directory, which it removes; returns the figures."""
    first, ours, back = (directory / name for name in ("first", "ours", "back"))
    directory.mkdir()
    size = write_checkpoint(first, form, model, SHARD[SIZE.value])
    options = [f"--format={form.name}", f"--max_shard_size={SHARD[SIZE.value]}"]
    report = {
        "bytes": size,
        "import": beside_a_copy("import", first, ours, size),
        "export": beside_a_copy("export", ours, back, size, options),
    }
    compare(first, back)
    shutil.rmtree(directory)
    say(f"{form.name}: {report}")
    return report | {"byte_equal": True}


def measure_source(source: Path, directory: Path) -> dict[str, Any]:
    """Imports a file, or a directory, into an empty directory; returns the figures."""
    folder = directory / "source"
    folder.mkdir()
    if source.is_dir():
        shutil.copytree(source, folder, dirs_exist_ok=True)
        source = folder
    else:
        source = Path(shutil.copy(source, folder))
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    figures = beside_a_copy("import", source, directory / "ours", size)
    return {"source": source.name, "bytes": size, **figures}


def beside_a_copy(
    direction: str, source: Path, target: Path, size: int, options: Sequence[str] = ()
) -> dict[str, float]:
    """Times a conversion and, before it, a copy of what it reads."""
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


def model_of_size(size: str, form: str = "moduleformer") -> ModelConfig:
    """Returns the MoLM-700M-8B, a small model of its kind, or a widened one of a format's kind.

    Raises:
      InputError: full and small are sizes of ModuleFormer; or there is no model to be widened.
    """
    if size == "medium":
        found = sorted(Path(FIXTURES.value, form).glob("*/config.json"))
        if not found:
            raise InputError(f"{FIXTURES.value} holds no model of format {form}")
        return widened(open_checkpoint(found[0].parent).model, MEDIUM // 2)
    if form != "moduleformer":
        raise InputError(f"--size={size} is a size of moduleformer; {form} has --size=medium")
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


def widened(model: ModelConfig, parameters: int) -> ModelConfig:
    """Returns the narrowest multiple of a model's widths that has so many parameters."""

    def times(factor: int) -> ModelConfig:
        segments = []
        for segment in model.segments:
            attention, feed_forward = segment.layer.attention, segment.layer.feed_forward
            layer = dataclasses.replace(
                segment.layer,
                attention=dataclasses.replace(attention, head_width=attention.head_width * factor),
                feed_forward=dataclasses.replace(feed_forward, hidden=feed_forward.hidden * factor),
            )
            segments.append(dataclasses.replace(segment, layer=layer))
        return model.replace(width=model.width * factor, segments=tuple(segments))

    factor = 1
    while sum(info.size for info in parameter_table(times(factor))) < parameters:
        factor = factor + max(1, factor // 8)
    return times(factor)


def write_checkpoint(directory: Path, form: Format, model: ModelConfig, largest: int) -> int:
    """Writes random bfloat16 weights as the original library would; returns their bytes."""
    assert form.write_config is not None
    directory.mkdir()
    bfloat16 = np.dtype(jnp.bfloat16)
    places = correspondence(form, model).places
    tensors = {name: TensorSpec(place.shape, bfloat16) for name, place in places.items()}
    files = divide(tensors, largest)
    config = form.write_config(Translation(model)) | {
        "model_type": form.model_type,
        "architectures": [form.architecture],
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
