"""VeRA in PEFT's format (arXiv 2310.11454), read as LoRA.

All modules share random `vera_A` `[rank, in]` and `vera_B` `[out, rank]` of the largest widths, of
which each takes the front; a module has two vectors, and the change is
`vera_lambda_b (vera_B (vera_lambda_d vera_A))`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import ClassVar

from modbrick.bricks.kinds.lora import LoRA
from modbrick.convert.peft.base import Base
from modbrick.convert.peft.kinds.low_rank import Shapes, Tensors, low_rank_pieces
from modbrick.convert.peft.module import Module
from modbrick.convert.peft.piece import Piece
from modbrick.convert.peft.settings import Targets
from modbrick.errors import InputError

FIRST, SECOND = "base_model.vera_A", "base_model.vera_B"


@dataclasses.dataclass(frozen=True)
class VeRASettings(Targets):
    """Settings of `VeraConfig` that change what an adapter computes.

    Attributes:
      r: rank.
      save_projection: the shared matrices are in the file.
    """

    aside: ClassVar = ("vera_dropout", "d_initial", "projection_prng_key")
    neutral: ClassVar = {"init_weights": (True,)}

    r: int = 256
    save_projection: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.save_projection:
            raise InputError(
                "save_projection is false: only the library itself can draw vera_A and vera_B "
                "again; save the adapter with them"
            )

    def shapes(self, module: Module) -> Shapes:
        """Returns the shapes of a module's tensors, by the end of their names."""
        return {".vera_lambda_b": (module.output_width,), ".vera_lambda_d": (self.r,)}

    def shared(self, modules: Sequence[Module]) -> Shapes:
        """Returns the shapes of tensors that all modules share, by name."""
        inputs = max(module.input_width for module in modules)
        outputs = max(module.output_width for module in modules)
        return {FIRST: (self.r, inputs), SECOND: (outputs, self.r)}

    def pieces(self, tensors: Tensors, name: str, base: Base) -> Iterator[Piece]:
        """Yields a LoRA of scale 1 for each site of each module."""
        for module, own in tensors.items():
            down = own[FIRST][:, : module.input_width] * own[".vera_lambda_d"][:, None]
            up = own[SECOND][: module.output_width] * own[".vera_lambda_b"][:, None]
            yield from low_rank_pieces(module, LoRA(self.r), down, up, name)
