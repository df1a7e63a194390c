r"""Measures what conversion keeps: logits, choices of experts, and every byte on the way back.

    python -m tools.check_conversion --json=docs/figures/conversion_parity.json

For each small model below --fixtures (random weights, with what the original library computed with
them in expected.safetensors): the relative error of the imported model's logits in float32 (norm of
the difference over norm, real tokens only), whether the routers choose the same experts, and
whether an import and an export give back every tensor byte for byte and the same config.

The last line of standard output is one JSON object.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from modbrick.command_line import check_output, run
from modbrick.convert import open_checkpoint
from modbrick.errors import InputError
from tools.conversion.parity import parity, round_trip

FIXTURES = flags.DEFINE_string("fixtures", "tests/fixtures", "Directory of FORMAT/MODEL.")
JSON = flags.DEFINE_string("json", None, "File for the result too.")


def main(argv: Sequence[str]) -> None:
    """Measures every model and prints a line for each."""
    del argv
    check_output(JSON)
    found = sorted(path.parent for path in Path(FIXTURES.value).glob("*/*/expected.safetensors"))
    found = [path for path in found if (path / "config.json").is_file()]
    if not found:
        raise InputError(f"{FIXTURES.value} holds no models")
    results = {}
    for directory in found:
        checkpoint = open_checkpoint(directory)
        name = f"{checkpoint.form.name}/{directory.name}"
        results[name] = parity(checkpoint, directory) | round_trip(checkpoint)
        print(f"{name}: {results[name]}", flush=True)
    if JSON.value is not None:
        Path(JSON.value).write_text(json.dumps(results, indent=2) + "\n")
    print(json.dumps(results))


if __name__ == "__main__":
    run(main)
