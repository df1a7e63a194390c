"""Command line: the bricks of a model, and the shardings of its parameters.

python -m modbrick summary CONFIG.py|CHECKPOINT
python -m modbrick shardings CONFIG.py|CHECKPOINT [--mesh=fsdp=4,expert=8] [--devices=32]
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags
from rich.console import Console

from modbrick import command_line
from modbrick.analysis.shardings import describe_shardings
from modbrick.analysis.summary import summarise
from modbrick.checkpoints import describe
from modbrick.config import ModelConfig
from modbrick.config.files import read_config_file, split_place
from modbrick.errors import InputError
from modbrick.parallel import MeshConfig
from modbrick.schema import from_mapping, nearest, to_mapping
from modbrick.training.run_config import RunConfig

COMMANDS = ("summary", "shardings")

MESH = flags.DEFINE_string(
    "mesh",
    None,
    "For shardings: sizes of the mesh's axes, such as fsdp=4,expert=8; default: the config's mesh.",
)
DEVICES = flags.DEFINE_integer(
    "devices",
    None,
    "For shardings: how many devices; default: the product of the axes.",
    lower_bound=1,
)


def config_sections(path: str) -> Mapping[str, Any]:
    """Reads the sections of a Python config file with `get_config()`, or of a checkpoint."""
    if not split_place(path)[0].endswith(".py"):
        return {"model": describe(path).metadata.model}
    sections: Mapping[str, Any] = to_mapping(read_config_file(path, RunConfig))
    if sections.get("model") is None:
        raise InputError(f"{path}: its config has no section model, or leaves it open")
    return sections


def model_config(path: str) -> ModelConfig:
    """Reads a model's config from a Python file with `get_config()`, or from a checkpoint."""
    return from_mapping(ModelConfig, config_sections(path)["model"], "model")


def mesh_config(text: str) -> MeshConfig:
    """Reads a mesh written as `fsdp=4,expert=8`; axes that are not named have one device."""
    sizes: dict[str, int] = {"data": 1}
    for part in text.split(","):
        name, _, size = part.partition("=")
        try:
            sizes[name.strip()] = int(size)
        except ValueError as error:
            raise InputError(f"--mesh={text}: {part!r} is no NAME=SIZE") from error
    return from_mapping(MeshConfig, sizes, "mesh")


def command(argv: Sequence[str]) -> int:
    """Runs a command of `python -m modbrick`."""
    if len(argv) != 3 or argv[1] not in COMMANDS:
        unknown = len(argv) > 1 and argv[1] not in COMMANDS
        remark = f" ({nearest(argv[1], COMMANDS)})" if unknown else ""
        raise InputError(
            f"usage: python -m modbrick {'|'.join(COMMANDS)} CONFIG.py|CHECKPOINT{remark}"
        )
    sections = config_sections(argv[2])
    model = from_mapping(ModelConfig, sections["model"], "model")
    if argv[1] == "summary":
        Console().print(summarise(model).table())
        return 0
    mesh = (
        from_mapping(MeshConfig, sections.get("mesh", {}), "mesh")
        if MESH.value is None
        else mesh_config(MESH.value)
    )
    sizes = dataclasses.asdict(mesh)
    slices = sizes.pop("slices")
    # An open data axis is as small as it can be.
    axes = math.prod(slices if size == -1 else size for size in sizes.values())
    Console().print(describe_shardings(model, mesh, DEVICES.value or axes).table())
    return 0


def main() -> None:
    """Entry point of the `modbrick` command."""
    command_line.run(command, positional="summary|shardings PATH")


if __name__ == "__main__":
    main()
