"""Norm tuning in PEFT's format, LN_TUNING (arXiv 2312.11420): copies of whole modules.

A module has `ln_tuning_layers.weight`, and `ln_tuning_layers.bias` if it has a bias.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from modbrick.convert.peft import whole
from modbrick.convert.peft.base import Base
from modbrick.convert.peft.kinds.low_rank import Shapes, Tensors
from modbrick.convert.peft.module import Module
from modbrick.convert.peft.piece import Piece
from modbrick.convert.peft.settings import Targets

LAYER = ".ln_tuning_layers"


@dataclasses.dataclass(frozen=True)
class NormSettings(Targets):
    """Settings of `LNTuningConfig` that change what an adapter computes."""

    adapts: ClassVar = ("norm", "linear", "embedding")
    aside: ClassVar[tuple[str, ...]] = ()
    neutral: ClassVar[Mapping[str, tuple[Any, ...]]] = {}

    def shapes(self, module: Module) -> Shapes:
        """Returns the shapes of a module's tensors, by the end of their names."""
        return {LAYER + end: shape for end, shape in whole.shapes(module).items()}

    def pieces(self, tensors: Tensors, name: str, base: Base) -> Iterator[Piece]:
        """Yields what makes each module into its copy."""
        for module, own in tensors.items():
            copy = {end.removeprefix(LAYER): values for end, values in own.items()}
            yield from whole.difference(module, copy, base, name, norms=name)
