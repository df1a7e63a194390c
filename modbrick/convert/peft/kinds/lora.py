"""LoRA in PEFT's format (arXiv 2106.09685; rsLoRA, 2312.03732; DoRA, 2402.09353).

A module `[out, in]` has `lora_A` `[rank, in]` and `lora_B` `[out, rank]`; the change is
`scale · lora_B lora_A`, to which `lora_bias` adds `scale · lora_B.bias`. An embedding
`[vocabulary, out]` has `lora_embedding_A` `[rank, vocabulary]` and `lora_embedding_B`
`[out, rank]`; a bank of experts has a pair for each, see `modbrick.convert.peft.bank`. DoRA has
`lora_magnitude_vector` `[out]` besides, the norms that the rows of the weight shall have.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import ClassVar, Literal

import numpy as np

from modbrick.bricks.kinds.bias import Bias
from modbrick.bricks.kinds.dora import DoRA
from modbrick.bricks.kinds.lora import LoRA
from modbrick.convert.peft.bank import bank_pieces, prefixes
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
from modbrick.convert.peft.settings import Targets, names, of_pattern
from modbrick.errors import InputError, listed

SHIFT, MAGNITUDE = ".lora_B.bias", ".lora_magnitude_vector"


@dataclasses.dataclass(frozen=True)
class LoRASettings(Targets):
    """Settings of `LoraConfig` that change what an adapter computes, or drops in training.

    Attributes:
      target_parameters: names of weights of banks, or ends of them.
      bias: which biases of the base the adapter has its own values of: those of the modules that it
        adapts, or all of the model.
    """

    adapts: ClassVar = ("linear", "embedding")
    aside: ClassVar = ("eva_config",)
    # Others change the weights of the base as they begin.
    neutral: ClassVar = {"init_lora_weights": (True, "gaussian", "eva", "orthogonal")}

    r: int = 8
    lora_alpha: float = 8.0
    lora_dropout: float = 0.0
    use_rslora: bool = False
    use_dora: bool = False
    rank_pattern: Mapping[str, int] | None = None
    alpha_pattern: Mapping[str, float] | None = None
    target_parameters: tuple[str, ...] | None = None
    lora_bias: bool = False
    bias: Literal["none", "all", "lora_only"] = "none"

    def __post_init__(self) -> None:
        super().__post_init__()
        for alpha in (self.lora_alpha, *(self.alpha_pattern or {}).values()):
            check_alpha(alpha)
        if self.lora_bias and self.use_dora:
            raise InputError("lora_bias and use_dora exclude each other")

    def chosen(self, modules: Mapping[str, Module]) -> list[Module]:
        """Lists the modules that are adapted, banks among them; see `Targets`."""
        found = super().chosen(modules)
        banks = [module for module in modules.values() if module.kind == "bank"]
        entries = self.target_parameters or ()
        idle = [e for e in entries if not any(names((e,), bank.name) for bank in banks)]
        if idle:
            raise InputError(f"target_parameters that match nothing: {listed(map(repr, idle))}")
        banks = [bank for bank in banks if names(entries, bank.name)]
        for setting in ("lora_bias", "use_dora"):
            odd = [m.name for m in [*found, *banks] if m.kind != "linear"]
            if getattr(self, setting) and odd:
                raise InputError(f"{setting} is for linear maps only, not for {listed(odd)}")
        begin = prefixes(banks)
        return found + [dataclasses.replace(bank, prefix=begin[bank.name]) for bank in banks]

    def changed_biases(self, chosen: Sequence[Module], biases: Collection[str]) -> dict[str, str]:
        """Returns which biases of the base the adapter has, each by the name that it has there.

        Args:
          chosen: modules that are adapted.
          biases: names of those that the base has.
        """
        if self.bias == "none":
            return {}
        own = {f"{m.name}.bias": f"{m.name}.base_layer.bias" for m in chosen if m.biased}
        return own if self.bias == "lora_only" else {name: name for name in biases} | own

    def of(self, module: Module) -> LoRA | DoRA:
        """Returns the settings of a module's brick."""
        rank = of_pattern(self.rank_pattern, module.name, self.r)
        alpha = float(of_pattern(self.alpha_pattern, module.name, self.lora_alpha))
        scaling: Literal["root", "rank"] = "root" if self.use_rslora else "rank"
        if self.use_dora:
            return DoRA(rank, alpha, scaling, self.lora_dropout)
        pairs: Literal["expert", "bank"] = "expert" if module.kind == "bank" else "bank"
        return LoRA(rank, alpha, scaling, pairs, self.lora_dropout)

    def shapes(self, module: Module) -> Shapes:
        """Returns the shapes of a module's tensors, by the end of their names."""
        rank = self.of(module).rank * (module.experts or 1)
        down, up = matrices(module)
        shapes: Shapes = {down: (rank, module.input_width), up: (module.output_width, rank)}
        shapes |= {SHIFT: (module.output_width,)} if self.lora_bias else {}
        return shapes | ({MAGNITUDE: (module.output_width,)} if self.use_dora else {})

    def pieces(self, tensors: Tensors, name: str, base: Base) -> Iterator[Piece]:
        """Yields a LoRA or a DoRA, and a bias if there is one, for each site of each module.

        Raises:
          InputError: a DoRA of a weight of which a row is zero.
        """
        settings = {module: self.of(module) for module in tensors}
        scales = {module: (of.rank, of.alpha or 0.0) for module, of in settings.items()}
        bricks = brick_names(name, scales, (self.r, self.lora_alpha))
        for module, own in tensors.items():
            of, brick = settings[module], bricks[module]
            down, up = (own[end] for end in matrices(module))
            if module.kind == "bank" and isinstance(of, LoRA):
                yield from bank_pieces(module, of, down, up, f"{brick}-experts")
                continue
            magnitude = own[MAGNITUDE] / _norms(module, base) if self.use_dora else None
            yield from low_rank_pieces(module, of, down, up, brick, magnitude)
            if self.lora_bias and isinstance(of, LoRA):
                for share in module.shares:
                    bias = own[SHIFT][share.start : share.stop] * np.float32(share.multiplier)
                    yield Piece(share.address, Bias(of.scale), {"bias": bias}, f"{brick}-bias")

    @property
    def _targets_more(self) -> bool:
        return bool(self.target_parameters) and self.target_modules is not None


def matrices(module: Module) -> tuple[str, str]:
    """Returns the ends of the names of both matrices."""
    if module.kind == "embedding":
        return ".lora_embedding_A", ".lora_embedding_B"
    return ".lora_A.weight", ".lora_B.weight"


def _norms(module: Module, base: Base) -> np.ndarray:
    norms = base.norms(module)
    if not norms.all():
        raise InputError(
            f"{module.name}: {np.count_nonzero(norms == 0)} rows of the base's weight are zero, "
            "which no magnitude scales"
        )
    return norms
