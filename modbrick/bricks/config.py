"""Config of a customized brick: its kind, and the sites of a model where it is attached."""

from __future__ import annotations

import dataclasses
import re
import types
from collections.abc import Mapping

from modbrick.bricks.kinds.adapter import Adapter
from modbrick.bricks.kinds.bias import Bias
from modbrick.bricks.kinds.dora import DoRA
from modbrick.bricks.kinds.emergent import Emergent
from modbrick.bricks.kinds.ia3 import IA3
from modbrick.bricks.kinds.knowledge import Knowledge
from modbrick.bricks.kinds.lora import LoRA
from modbrick.bricks.kinds.modality import Modality
from modbrick.bricks.kinds.norm import NormTuning
from modbrick.bricks.kinds.prefix import Prefix
from modbrick.bricks.kinds.prompt import Prompt
from modbrick.bricks.kinds.sparse import SparseDelta
from modbrick.errors import InputError

Settings = (
    LoRA
    | DoRA
    | Adapter
    | IA3
    | Bias
    | NormTuning
    | SparseDelta
    | Prefix
    | Prompt
    | Modality
    | Knowledge
    | Emergent
)
"""Settings of a brick of any kind; `kind` tells them apart."""

_NAME = re.compile(r"[A-Za-z0-9_-]+")


@dataclasses.dataclass(frozen=True)
class BrickConfig:
    """What a brick is, and where: the same arrays' shapes follow for any model that has the sites.

    Attributes:
      at: patterns of sites: `layer.*.attention.query`, `layer.4-7.feed_forward`, `embedding`. A
        pattern that names no site as a whole covers those that begin with it
        (`layer.*.attention`, which is a site itself, covers only that one; `layer.*.attention.*`
        those inside).
      settings: of its kind.
    """

    at: tuple[str, ...]
    settings: Settings

    def __post_init__(self) -> None:
        if isinstance(self.at, str):
            raise InputError(f"`at` is a list of patterns, got {self.at!r}")
        object.__setattr__(self, "at", tuple(self.at))
        if not self.at:
            raise InputError("a brick is attached somewhere: `at` names no site")


def dropout(settings: Settings) -> float:
    """Returns which share of what it reads a brick drops in training."""
    return settings.dropout if isinstance(settings, LoRA | DoRA) else 0.0


NO_BRICKS: Mapping[str, BrickConfig] = types.MappingProxyType({})
"""Bricks of a model that has none."""


def check_name(name: str) -> None:
    """Refuses names of bricks that an address could not hold.

    Raises:
      InputError: anything but letters, digits, - and _.
    """
    if not _NAME.fullmatch(name):
        raise InputError(f"{name!r} is no name of a brick: letters, digits, - and _ are")
