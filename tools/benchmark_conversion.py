r"""Measures conversion: speed beside copying the same bytes on the same disk, and peak memory.

    python -m tools.benchmark_conversion --directory=DIR --json=docs/figures/conversion.json
    python -m tools.benchmark_conversion --directory=DIR --size=medium \
        --formats=moduleformer,llama,... --json=docs/figures/conversion_formats.json
    python -m tools.benchmark_conversion --directory=DIR --source=FILE.gguf

Writes a random checkpoint in bfloat16 below DIR: of the shape of MoLM-700M-8B (--size=full, 16 GB),
or a format's small model under --fixtures, made wider until it has half a gigabyte (medium). It is
imported and exported again with scripts/convert_checkpoint.py, each in a process of its own, and
the same files are copied beside each. DIR needs room for four times the size, and is left as it
was. Exported tensors are compared with the first ones, byte for byte. With --source: its import.

How it is measured: before each of the four, the files to be read are written back and dropped from
the page cache (posix_fadvise); the clock stops when everything is on the disk (fsync; TensorStore
does so by itself). A conversion's time is that of the whole command, start of Python and JAX
included.

The last line of standard output is one JSON object.
"""

from __future__ import annotations

import datetime
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from absl import flags

from modbrick.command_line import check_output, run
from modbrick.config import ModelConfig
from modbrick.convert import format_named
from modbrick.convert.format import Format
from tools.conversion.cold import beside_a_copy, say
from tools.conversion.synthetic import compare, model_of_size, write_checkpoint

DIRECTORY = flags.DEFINE_string("directory", None, "Where to write; none: the temporary directory.")
SIZE = flags.DEFINE_enum("size", "full", ["full", "medium", "small"], "Of the model.")
FORMATS = flags.DEFINE_list("formats", ["moduleformer"], "Formats to measure, with --size=medium.")
SOURCE = flags.DEFINE_string("source", None, "Measure the import of this instead.")
FIXTURES = flags.DEFINE_string("fixtures", "tests/fixtures", "Directory of FORMAT/MODEL.")
JSON = flags.DEFINE_string("json", None, "File for the result too.")

SHARD = {"full": 5_000_000_000, "medium": 200_000_000, "small": 2_000_000}


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
                model = model_of_size(SIZE.value, name, Path(FIXTURES.value))
                report[name] = measure(format_named(name), model, Path(directory) / name)
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


if __name__ == "__main__":
    run(main)
