"""AdaLoRA in PEFT's format (arXiv 2303.10512), read as LoRA.

A module `[out, in]` has `lora_A` `[rank, in]`, `lora_B` `[out, rank]` and singular values `lora_E`
`[rank, 1]`; the change is `alpha / (init_r + 1e-5) · lora_B (lora_E lora_A)`, whatever rank is
left.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import ClassVar

from modbrick.bricks.kinds.lora import LoRA
from modbrick.convert.peft.base import Base
from modbrick.convert.peft.kinds.low_rank import (
    Shapes,
    Tensors,
    brick_names,
    check_alpha,
    low_rank_pieces,
)
from modbrick.convert.peft.module import Module
from modbrick.convert.peft.piece import Piece
from modbrick.convert.peft.settings import Targets
from modbrick.errors import InputError


@dataclasses.dataclass(frozen=True)
class AdaLoRASettings(Targets):
    """Settings of `AdaLoraConfig` that change what an adapter computes.

    Attributes:
      init_r: rank at first.
      lora_alpha: of the scale.
      rank_pattern: which singular values are left, by `NAME.lora_E`.
    """

    aside: ClassVar = (
        "lora_dropout", "r", "target_r", "tinit", "tfinal", "deltaT", "beta1", "beta2",
        "orth_reg_weight", "total_step",
    )  # fmt: skip
    neutral: ClassVar = {"init_lora_weights": (True,)}

    init_r: int = 12
    lora_alpha: float = 8.0
    rank_pattern: Mapping[str, tuple[bool, ...]] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_alpha(self.lora_alpha)
        if self.init_r < 1:
            raise InputError(f"init_r must be at least 1, got {self.init_r}")

    def rank(self, module: Module) -> int:
        """Returns how many singular values of a module are left."""
        kept = (self.rank_pattern or {}).get(f"{module.name}.lora_E")
        return self.init_r if kept is None else sum(kept)

    def shapes(self, module: Module) -> Shapes:
        """Returns the shapes of a module's tensors, by the end of their names."""
        rank = self.rank(module)
        return {
            ".lora_A": (rank, module.input_width),
            ".lora_B": (module.output_width, rank),
            ".lora_E": (rank, 1),
        }

    def pieces(self, tensors: Tensors, name: str, base: Base) -> Iterator[Piece]:
        """Yields a LoRA for each site of each module of which singular values are left."""
        alpha = self.lora_alpha if self.lora_alpha > 0 else float(self.init_r)
        ranks = {module: (rank, alpha) for module in tensors if (rank := self.rank(module))}
        names = brick_names(name, ranks, (self.init_r, alpha)) if ranks else {}
        for module, brick in names.items():
            rank, own = ranks[module][0], tensors[module]
            settings = LoRA(rank, alpha * rank / (self.init_r + 1e-5))
            down = own[".lora_A"] * own[".lora_E"]
            yield from low_rank_pieces(module, settings, down, own[".lora_B"], brick)
