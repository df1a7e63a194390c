"""`python -m modbrick summary PATH`: what a model consists of."""

from __future__ import annotations

import runpy
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from modbrick import command_line
from modbrick.analysis.summary import summarise
from modbrick.checkpoints import describe
from modbrick.config import ModelConfig
from modbrick.errors import InputError
from modbrick.schema import from_mapping, nearest

COMMANDS = ("summary",)


def model_config(path: str) -> ModelConfig:
    """Reads a model's config from a Python file with `get_config()`, or from a checkpoint."""
    if path.endswith(".py"):
        if not Path(path).is_file():
            raise InputError(f"{path}: no such config file")
        found = runpy.run_path(path)
        if "get_config" not in found:
            raise InputError(f"{path}: a config file defines get_config()")
        config = found["get_config"]().to_dict()
        if "model" not in config:
            raise InputError(f"{path}: its config has no section model")
        return from_mapping(ModelConfig, config["model"], "model")
    return from_mapping(ModelConfig, describe(path).metadata.model, "model")


def command(argv: Sequence[str]) -> int:
    """Runs a command of `python -m modbrick`."""
    if len(argv) != 3 or argv[1] not in COMMANDS:
        unknown = len(argv) > 1 and argv[1] not in COMMANDS
        remark = f" ({nearest(argv[1], COMMANDS)})" if unknown else ""
        raise InputError(f"usage: python -m modbrick summary CONFIG.py|CHECKPOINT{remark}")
    Console().print(summarise(model_config(argv[2])).table())
    return 0


def main() -> None:
    """Entry point of the `modbrick` command."""
    command_line.run(command, positional="summary PATH")


if __name__ == "__main__":
    main()
