r"""Turns a checkpoint of another library into one of modbrick, and back.

    python scripts/convert_checkpoint.py import SOURCE TARGET
    python scripts/convert_checkpoint.py export SOURCE TARGET --format=NAME

import: SOURCE is a directory with config.json and weights (safetensors, or PyTorch .bin files, none
of whose code is run), or a GGUF file. Its tokenizer comes along. TARGET is then a model like a run.

export: SOURCE is a run's or a model's directory. TARGET gets config.json, safetensors and the
tokenizer, for the library that the format belongs to.

TARGET is new or empty; interrupted or failed, it is left as it was. Standard output ends with one
JSON object: what was converted, and after an import the weights of the original's router losses.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any

from absl import flags

from modbrick import command_line, convert
from modbrick.convert.terminal import byte_progress, byte_size
from modbrick.errors import InputError

FORMAT = flags.DEFINE_string("format", None, "export: the format to write, such as moduleformer.")
STEP = flags.DEFINE_integer("step", None, "export: which checkpoint of a run; none: the newest.")
DTYPE = flags.DEFINE_enum("dtype", None, ["float32", "bfloat16", "float16"], "Of all weights.")
TOKENIZER = flags.DEFINE_string("tokenizer", None, "import: another, by its path; or none.")
SHARD = flags.DEFINE_string("max_shard_size", "5GB", "export: of one file, such as 500MB or 2GiB.")
IGNORE = flags.DEFINE_list("ignore_keys", [], "import: keys of the config that do not matter.")
NOT_FINITE = flags.DEFINE_boolean("allow_not_finite", False, "Keep infinities and NaN.")

USAGE = "expected: convert_checkpoint.py import SOURCE TARGET | export SOURCE TARGET --format=NAME"


def main(argv: Sequence[str]) -> None:
    """Converts as the arguments say."""
    if len(argv) != 4 or argv[1] not in ("import", "export"):
        raise InputError(USAGE)
    command_line.interrupt_at_sigterm()
    began = time.perf_counter()
    report = (_import if argv[1] == "import" else _export)(argv[2], argv[3])
    print(json.dumps(report | {"seconds": round(time.perf_counter() - began, 3)}))


def _import(source: str, target: str) -> dict[str, Any]:
    checkpoint = convert.open_checkpoint(source, ignore_keys=IGNORE.value)
    total = convert.stored_bytes(checkpoint, DTYPE.value)
    with byte_progress(f"import {checkpoint.form.name}", total) as bar:
        result = convert.import_checkpoint(
            checkpoint,
            target,
            dtype=DTYPE.value,
            tokenizer=TOKENIZER.value,
            allow_not_finite=NOT_FINITE.value,
            progress=bar,
        )
    for remark in result.remarks():
        print(remark)
    return result.to_mapping()


def _export(source: str, target: str) -> dict[str, Any]:
    if FORMAT.value is None:
        raise InputError("export needs --format=NAME")
    form, size = convert.format_named(FORMAT.value), byte_size(SHARD.value, f"--{SHARD.name}")
    export = convert.prepare_export(source, form, step=STEP.value, dtype=DTYPE.value)
    with byte_progress(f"export {export.form.name}", export.nbytes) as bar:
        files = convert.export_checkpoint(
            export, target, max_shard_size=size, allow_not_finite=NOT_FINITE.value, progress=bar
        )
    return export.to_mapping() | {"directory": target, "files": len(files)}


if __name__ == "__main__":
    command_line.run(main, positional="COMMAND SOURCE TARGET")
