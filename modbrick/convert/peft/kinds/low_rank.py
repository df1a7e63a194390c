"""What kinds of adapters with low-rank updates share: bricks of one rank and one scale each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from modbrick.bricks.kinds.dora import DoRA
from modbrick.bricks.kinds.lora import LoRA
from modbrick.convert.peft.module import Module
from modbrick.convert.peft.piece import Piece
from modbrick.errors import InputError

Shapes = dict[str, tuple[int, ...]]

Tensors = Mapping[Module, Mapping[str, np.ndarray]]
"""Tensors of each module, by the end of their names, or by the whole of those that all share."""


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
    module: Module,
    settings: LoRA | DoRA,
    down: np.ndarray,
    up: np.ndarray,
    name: str,
    magnitude: np.ndarray | None = None,
) -> Iterator[Piece]:
    """Yields a LoRA or a DoRA for each site of a module.

    Args:
      module: where it is.
      settings: of the brick.
      down: `[rank, in]`.
      up: `[out, rank]`.
      name: of the brick.
      magnitude: `[out]`, of a DoRA, relative to that of the base.
    """
    for share in module.shares:
        span = slice(share.start, share.stop)
        leaves = {"down": down.T, "up": up[span].T * np.float32(share.multiplier)}
        if magnitude is not None:
            leaves["magnitude"] = magnitude[span]
        yield Piece(share.address, settings, leaves, name)


def plain(alpha: float) -> int | float:
    """Returns a whole number as an int."""
    return int(alpha) if float(alpha).is_integer() else alpha


def _spelt(alpha: float) -> str:
    """Returns a number in letters that a brick's name may have."""
    return str(plain(alpha)).replace(".", "_").replace("+", "")
