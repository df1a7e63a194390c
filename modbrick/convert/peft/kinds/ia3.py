"""IA³ in PEFT's format (arXiv 2205.05638).

A module `[out, in]` has factors `ia3_l` `[out, 1]` of its outputs; one of `feedforward_modules` has
factors `[1, in]` of its inputs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import numpy as np

from modbrick.bricks.kinds.ia3 import IA3
from modbrick.convert.peft.base import Base
from modbrick.convert.peft.kinds.low_rank import Shapes, Tensors
from modbrick.convert.peft.module import Module
from modbrick.convert.peft.piece import Piece
from modbrick.convert.peft.settings import Names, Targets, names
from modbrick.errors import InputError, listed

FACTORS = ".ia3_l"


@dataclasses.dataclass(frozen=True)
class IA3Settings(Targets):
    """Settings of `IA3Config` that change what an adapter computes.

    Attributes:
      feedforward_modules: whose inputs are multiplied; None: the last map of a feed-forward.
    """

    aside: ClassVar = ()
    neutral: ClassVar = {"init_ia3_weights": (True,)}

    feedforward_modules: Names = None

    def chosen(self, modules: Mapping[str, Module]) -> list[Module]:
        """Lists the modules that are adapted; see `Targets`."""
        found = super().chosen(modules)
        problems = [m.name for m in found if self._before(m) and not m.inputs]
        if problems:
            raise InputError(f"no site here sees just the inputs of {listed(problems)}")
        return found

    def shapes(self, module: Module) -> Shapes:
        """Returns the shapes of a module's tensors, by the end of their names."""
        before = self._before(module)
        return {FACTORS: (1, module.input_width) if before else (module.output_width, 1)}

    def pieces(self, tensors: Tensors, name: str, base: Base) -> Iterator[Piece]:
        """Yields factors for each site of each module, or for the one before it."""
        for module, own in tensors.items():
            factors = own[FACTORS].reshape(-1)
            if self._before(module):
                yield Piece(module.inputs, IA3(), {"factor": factors}, name)
                continue
            for share in module.shares:
                part = factors[share.start : share.stop]
                yield Piece(share.address, IA3(), {"factor": part}, name)

    def _before(self, module: Module) -> bool:
        if self.feedforward_modules is None:
            return bool(module.inputs)
        return bool(self.feedforward_modules) and names(self.feedforward_modules, module.name)


def written(
    placed: Mapping[Module, Mapping[str, list[Piece]]],
) -> tuple[dict[str, Any], dict[str, np.ndarray], list[str]]:
    """Returns the settings of an adapter but for its targets, its tensors, and what is before.

    Args:
      placed: factors by module and address.

    Returns:
      The third: names of the modules whose inputs are multiplied.

    Raises:
      InputError: factors of both the inputs and the outputs of a module.
    """
    tensors, before = {}, []
    for module, pieces in placed.items():
        factors = {address: _product(at) for address, at in pieces.items()}
        if module.inputs and module.inputs in factors:
            if len(factors) > 1:
                raise InputError(f"PEFT has one IA³ at {module.name}: before it or behind it")
            tensors[module.name + FACTORS] = factors[module.inputs][None]
            before.append(module.name)
            continue
        for share in module.shares:
            factors.setdefault(share.address, np.ones(share.stop - share.start, np.float32))
        parts = [factors[share.address] for share in module.shares]
        tensors[module.name + FACTORS] = np.concatenate(parts)[:, None]
    return {"peft_type": "IA3"}, tensors, before


def _product(pieces: list[Piece]) -> np.ndarray:
    """Returns the factors of several bricks at a site as one."""
    factors = pieces[0].leaves["factor"]
    for piece in pieces[1:]:
        factors = factors * piece.leaves["factor"]
    return factors
