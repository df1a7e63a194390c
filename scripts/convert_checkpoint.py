r"""Turns a checkpoint of another format into one of modbrick.

    python scripts/convert_checkpoint.py import SOURCE TARGET

SOURCE is a directory with config.json and the weights (safetensors, or PyTorch .bin files, which
are read without PyTorch and without running anything in them; sharded or not) of the original
ModuleFormer. TARGET is a new or empty directory, which evaluate.py and generate.py take as
--checkpoint. A tokenizer.json in SOURCE comes along.

The last line of standard output is one JSON object: what was converted, and the weights of the
router losses with which the original was trained, for the objective of a run that goes on with it.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from modbrick.addresses import flatten
from modbrick.checkpoints import Metadata, save_model
from modbrick.command_line import run
from modbrick.convert import open_checkpoint, read_parameters
from modbrick.data import Tokenizer, load_tokenizer
from modbrick.errors import InputError

USAGE = "expected: convert_checkpoint.py import SOURCE TARGET"
FORMAT = "moduleformer"


def main(argv: Sequence[str]) -> None:
    """Imports the checkpoint that the arguments name."""
    if len(argv) != 4 or argv[1] != "import":
        raise InputError(USAGE)
    source, target = Path(argv[2]), argv[3]
    began = time.perf_counter()

    checkpoint = open_checkpoint(source)
    config, objective = checkpoint.model, dict(checkpoint.translation.objective)
    parameters = read_parameters(checkpoint, dtype="float32")
    tokenizer = _tokenizer(source, config.vocabulary)
    metadata = Metadata(
        model=config,
        tokenizer={} if tokenizer is None else dataclasses.asdict(tokenizer.identity),
        extra={"imported": FORMAT, "objective": objective},
    )
    text = None if tokenizer is None else tokenizer.to_json()
    path = save_model(target, parameters, metadata, tokenizer=text)

    values = sum(int(np.size(value)) for value in flatten(parameters).values())
    if tokenizer is None:
        print(f"no tokenizer: {source} has no tokenizer.json")
    report = {
        "format": FORMAT,
        "checkpoint": str(path),
        "parameters": values,
        "layers": len(config.layers),
        "objective": objective,
        "tokenizer": tokenizer is not None,
        "seconds": round(time.perf_counter() - began, 3),
    }
    print(json.dumps(report))


def _tokenizer(source: Path, vocabulary: int) -> Tokenizer | None:
    if not (source / "tokenizer.json").is_file():
        return None
    tokenizer = load_tokenizer(str(source / "tokenizer.json"))
    if tokenizer.vocabulary > vocabulary:
        raise InputError(
            f"{source}: tokenizer.json has {tokenizer.vocabulary} tokens, the model {vocabulary}"
        )
    return tokenizer


if __name__ == "__main__":
    run(main, positional="COMMAND SOURCE TARGET")
