"""LoRA in PEFT's format (arXiv 2106.09685; rsLoRA, 2312.03732), with its patterns and its bias.

A module `[out, in]` has `lora_A` `[rank, in]` and `lora_B` `[out, rank]`; the change is
`scale · lora_B lora_A`, to which `lora_bias` adds `scale · lora_B.bias`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np

from modbrick.bricks.kinds.bias import Bias
from modbrick.bricks.kinds.lora import LoRA
from modbrick.convert.peft.module import Module
from modbrick.convert.peft.piece import Piece
from modbrick.convert.peft.settings import Targets, of_pattern
from modbrick.errors import InputError

Shapes = dict[str, tuple[int, ...]]

Tensors = Mapping[Module, Mapping[str, np.ndarray]]
"""Tensors of each module, by the end of their names, or by the whole of those that all share."""

DOWN, UP, SHIFT = ".lora_A.weight", ".lora_B.weight", ".lora_B.bias"


@dataclasses.dataclass(frozen=True)
class LoRASettings(Targets):
    """Settings of `LoraConfig` that change what an adapter computes."""

    aside: ClassVar = ("lora_dropout", "eva_config")
    # Others change the weights of the base as they begin.
    neutral: ClassVar = {"init_lora_weights": (True, "gaussian", "eva", "orthogonal")}

    r: int = 8
    lora_alpha: float = 8.0
    use_rslora: bool = False
    rank_pattern: Mapping[str, int] | None = None
    alpha_pattern: Mapping[str, float] | None = None
    lora_bias: bool = False
    bias: Literal["none", "all", "lora_only"] = "none"

    def __post_init__(self) -> None:
        super().__post_init__()
        for alpha in (self.lora_alpha, *(self.alpha_pattern or {}).values()):
            check_alpha(alpha)

    def chosen(self, modules: Mapping[str, Module]) -> list[Module]:
        """Lists the modules that are adapted; see `Targets`."""
        found = super().chosen(modules)
        trained = {"none": [], "lora_only": found, "all": list(modules.values())}[self.bias]
        if any(module.biased for module in trained):
            raise InputError(
                f"settings that are not supported: bias ({self.bias!r}), which replaces those of "
                "the base"
            )
        return found

    def of(self, module: Module) -> LoRA:
        """Returns the settings of a module's brick."""
        rank = of_pattern(self.rank_pattern, module.name, self.r)
        alpha = of_pattern(self.alpha_pattern, module.name, self.lora_alpha)
        return LoRA(rank, float(alpha), "root" if self.use_rslora else "rank")

    def shapes(self, module: Module) -> Shapes:
        """Returns the shapes of a module's tensors, by the end of their names."""
        rank = self.of(module).rank
        shapes: Shapes = {DOWN: (rank, module.input_width), UP: (module.output_width, rank)}
        return shapes | ({SHIFT: (module.output_width,)} if self.lora_bias else {})

    def shared(self, modules: Sequence[Module]) -> Shapes:
        """Returns the shapes of tensors that all modules share, by name."""
        del modules
        return {}

    def pieces(self, tensors: Tensors, name: str) -> Iterator[Piece]:
        """Yields a LoRA, and a bias if there is one, for each site of each module."""
        settings = {module: self.of(module) for module in tensors}
        scales = {module: (of.rank, of.alpha or 0.0) for module, of in settings.items()}
        names = brick_names(name, scales, (self.r, self.lora_alpha))
        for module, own in tensors.items():
            of, brick = settings[module], names[module]
            yield from low_rank_pieces(module, of, own[DOWN], own[UP], brick)
            for share in module.shares if self.lora_bias else ():
                bias = own[SHIFT][share.start : share.stop]
                yield Piece(share.address, Bias(of.scale), {"bias": bias}, f"{brick}-bias")


def check_alpha(alpha: float) -> None:
    """Refuses what gives no scale in float32.

    Raises:
      InputError: no number, or beyond any reasonable one.
    """
    if not abs(alpha) <= 1e30:  # NaN too
        raise InputError(f"lora_alpha is {alpha}, beyond any reasonable number")


def brick_names(
    name: str, scales: Mapping[Module, tuple[int, float]], usual: tuple[int, float]
) -> dict[Module, str]:
    """Returns the name of each module's brick, which says in what it is unlike the usual one.

    Args:
      name: of the usual one.
      scales: rank and alpha of each module.
      usual: rank and alpha; if no module has them, the first one's are.
    """
    rank, alpha = usual if usual in scales.values() else next(iter(scales.values()))
    found = {}
    for module, (own_rank, own_alpha) in scales.items():
        differs = [] if own_rank == rank else [f"r{own_rank}"]
        differs += [] if own_alpha == alpha else [f"a{_spelt(own_alpha)}"]
        found[module] = "-".join([name, *differs])
    return found


def low_rank_pieces(
    module: Module, settings: LoRA, down: np.ndarray, up: np.ndarray, name: str
) -> Iterator[Piece]:
    """Yields a LoRA for each site of a module.

    Args:
      module: where it is.
      settings: of the brick.
      down: `[rank, in]`.
      up: `[out, rank]`.
      name: of the brick.
    """
    for share in module.shares:
        leaves = {"down": down.T, "up": up[share.start : share.stop].T}
        yield Piece(share.address, settings, leaves, name)


def written(
    placed: Mapping[Module, Mapping[str, list[Piece]]],
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Returns the settings of an adapter but for its targets, and its tensors by name.

    Rank and alpha of the brick of the shortest name are `r` and `lora_alpha`, the others' are
    patterns; so the names survive that reading gives.

    Args:
      placed: LoRAs, and biases beside them, by module and address.

    Raises:
      InputError: something that is no such adapter, by name.
    """
    loras = {module: _lora(module, pieces) for module, pieces in placed.items()}
    scalings = {lora.settings.scaling for lora in loras.values()}
    if len(scalings) > 1:
        raise InputError("PEFT has one scaling an adapter: write bricks of either one by one")
    biased = any(isinstance(p.settings, Bias) for at in placed.values() for p in _all(at))
    tensors: dict[str, np.ndarray] = {}
    for module, lora in loras.items():
        tensors[module.name + DOWN], tensors[module.name + UP] = lora.down, lora.up
        if biased:
            tensors[module.name + SHIFT] = _shift(module, placed[module], lora.settings.scale)
    ranks = {module.name: lora.settings.rank for module, lora in loras.items()}
    alphas = {module.name: _alpha(lora.settings) for module, lora in loras.items()}
    first = min(loras, key=lambda module: len(loras[module].brick))
    rank, alpha = ranks[first.name], alphas[first.name]
    settings: dict[str, Any] = {"peft_type": "LORA", "r": rank, "lora_alpha": _plain(alpha)}
    settings |= {"use_rslora": True} if scalings == {"root"} else {}
    settings |= {"lora_bias": True} if biased else {}
    patterns = {
        "rank_pattern": _patterns(ranks, rank),
        "alpha_pattern": {key: _plain(v) for key, v in _patterns(alphas, alpha).items()},
    }
    return settings | {key: value for key, value in patterns.items() if value}, tensors


@dataclasses.dataclass(frozen=True)
class _Update:
    """Update of a module: `down` `[rank, in]`, `up` `[out, rank]`."""

    brick: str
    settings: LoRA
    down: np.ndarray
    up: np.ndarray


def _all(pieces: Mapping[str, list[Piece]]) -> list[Piece]:
    return [piece for at in pieces.values() for piece in at]


def _lora(module: Module, pieces: Mapping[str, list[Piece]]) -> _Update:
    found: dict[str, Piece] = {}
    for address, at in pieces.items():
        loras = [piece for piece in at if isinstance(piece.settings, LoRA)]
        if len(loras) > 1:
            both = " and ".join(piece.brick for piece in loras)
            raise InputError(f"{both} both change {address}, where PEFT has one LoRA an adapter")
        if loras:
            found[address] = loras[0]
    if not found:
        raise InputError(f"a bias without a LoRA at {', '.join(pieces)}, which PEFT does not have")
    first = next(iter(found.values()))
    settings, down = first.settings, first.leaves["down"].T
    assert isinstance(settings, LoRA), "only those were chosen"
    for piece in found.values():
        if piece.settings != settings or not np.array_equal(piece.leaves["down"].T, down):
            raise InputError(
                f"{module.name} holds {' and '.join(found)} as one map, "
                "for which PEFT has one LoRA with one first matrix"
            )
    parts = [
        found[share.address].leaves["up"]
        if share.address in found
        else np.zeros((settings.rank, share.stop - share.start), down.dtype)
        for share in module.shares
    ]
    return _Update(first.brick, settings, down, np.concatenate(parts, axis=1).T)


def _shift(module: Module, pieces: Mapping[str, list[Piece]], scale: float) -> np.ndarray:
    """Returns `lora_B.bias`, which PEFT multiplies by the scale of the LoRA."""
    parts = []
    for share in module.shares:
        total = np.zeros(share.stop - share.start, np.float32)
        for piece in pieces.get(share.address, []):
            if isinstance(piece.settings, Bias):
                if scale == 0:
                    raise InputError(f"{piece.brick}: PEFT scales the bias by alpha, which is 0")
                factor = piece.settings.strength / scale
                bias = piece.leaves["bias"]
                total = total + (bias if factor == 1 else bias * np.float32(factor))
        parts.append(total)
    return np.concatenate(parts)


def _alpha(settings: LoRA) -> float:
    if settings.alpha is not None:
        return settings.alpha
    return float(settings.rank) if settings.scaling == "rank" else settings.rank**0.5


def _patterns[T](values: Mapping[str, T], usual: T) -> dict[str, T]:
    """Returns the values that are not the usual one, by the shortest end of names that says so."""
    ends: dict[str, set[T]] = {}
    for name, value in values.items():
        ends.setdefault(name.rpartition(".")[2], set()).add(value)
    patterns: dict[str, T] = {}
    for name, value in values.items():
        end = name.rpartition(".")[2]
        if value != usual:
            patterns[end if len(ends[end]) == 1 else name] = value
    return patterns


def _plain(alpha: float) -> int | float:
    return int(alpha) if float(alpha).is_integer() else alpha


def _spelt(alpha: float) -> str:
    """Returns a number in letters that a brick's name may have."""
    return str(_plain(alpha)).replace(".", "_").replace("+", "")
