"""Writing LoRAs and DoRAs in PEFT's format."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from absl import logging
from jaxtyping import Float

from modbrick.bricks.kinds.dora import DoRA
from modbrick.bricks.kinds.lora import LoRA
from modbrick.convert.peft.bank import flattened
from modbrick.convert.peft.base import Base
from modbrick.convert.peft.kinds.lora import MAGNITUDE, matrices
from modbrick.convert.peft.kinds.low_rank import plain
from modbrick.convert.peft.module import Module
from modbrick.convert.peft.piece import Piece
from modbrick.errors import InputError

At = Mapping[str, Sequence[Piece]]
"""What bricks have at a module, by address."""


@dataclasses.dataclass(frozen=True)
class Update:
    """Update of a module, or of each expert of a bank; else E is 1.

    Attributes:
      brick: name of the first of its bricks.
      settings: of the whole.
      down, up: matrices.
      magnitude: of a DoRA, relative to the base's; else ones.
    """

    brick: str
    settings: LoRA | DoRA
    down: Float[np.ndarray, "E I R"]
    up: Float[np.ndarray, "E R O"]
    magnitude: Float[np.ndarray, "O"]

    def tensors(self, module: Module, base: Base) -> dict[str, np.ndarray]:
        """Returns what PEFT stores of it, by name."""
        down, up = (module.key + end for end in matrices(module))
        tensors = dict(zip((down, up), flattened(self.down, self.up), strict=True))
        if isinstance(self.settings, DoRA):
            tensors[module.key + MAGNITUDE] = self.magnitude * base.norms(module)
        return tensors


def updates(placed: Mapping[Module, At]) -> dict[Module, Update]:
    """Returns the updates of all modules that have a LoRA or a DoRA.

    Raises:
      InputError: two of them at one site, by name; or both kinds, or both scalings.
    """
    found = {m: _update(m, loras) for m, at in placed.items() if (loras := _loras(at))}
    forms = {(type(update.settings), update.settings.scaling) for update in found.values()}
    if len(forms) > 1:
        raise InputError(
            "PEFT has one scaling an adapter, and either LoRAs or DoRAs: write bricks one by one"
        )
    return found


def settings_of(updates: Mapping[Module, Update]) -> dict[str, Any]:
    """Returns the settings of an adapter with these updates but for its targets.

    Rank and alpha of the brick of the shortest name are `r` and `lora_alpha`, the others' are
    patterns; so the names survive that reading gives.
    """
    ranks = {module.name: update.settings.rank for module, update in updates.items()}
    alphas = {module.name: _alpha(update.settings) for module, update in updates.items()}
    first = min(updates, key=lambda module: len(updates[module].brick))
    form, rank, alpha = updates[first].settings, ranks[first.name], alphas[first.name]
    settings: dict[str, Any] = {"peft_type": "LORA", "r": rank, "lora_alpha": plain(alpha)}
    settings |= {"use_rslora": True} if form.scaling == "root" else {}
    settings |= {"use_dora": True} if isinstance(form, DoRA) else {}
    settings |= _dropout(updates)
    patterns = {
        "rank_pattern": _patterns(ranks, rank),
        "alpha_pattern": {key: plain(v) for key, v in _patterns(alphas, alpha).items()},
    }
    return settings | {key: value for key, value in patterns.items() if value}


def _dropout(updates: Mapping[Module, Update]) -> dict[str, float]:
    """Returns the share that all updates drop in training: PEFT has one, and none at banks."""
    rates = {update.settings.dropout for update in updates.values()}
    if rates == {0.0}:
        return {}
    if len(rates) == 1 and not any(module.kind == "bank" for module in updates):
        return {"lora_dropout": rates.pop()}
    logging.warning(
        "dropout of %s is left aside: PEFT has one for all of an adapter, and none at banks",
        " and ".join(sorted({u.brick for u in updates.values() if u.settings.dropout})),
    )
    return {}


def _loras(at: At) -> dict[str, Piece]:
    """Returns the LoRAs and DoRAs of a module, by address."""
    found: dict[str, Piece] = {}
    for address, pieces in at.items():
        loras = [piece for piece in pieces if isinstance(piece.settings, LoRA | DoRA)]
        if len(loras) > 1:
            both = " and ".join(piece.brick for piece in loras)
            raise InputError(f"{both} both change {address}, where PEFT has one LoRA an adapter")
        if loras:
            found[address] = loras[0]
    return found


def _update(module: Module, loras: Mapping[str, Piece]) -> Update:
    """Puts the LoRAs of a module's sites together; of first matrices it has one, maybe wider."""
    downs: list[np.ndarray] = []
    numbers: dict[str, int] = {}
    for address, piece in loras.items():
        down = _matrix(piece, "down")
        known = [i for i, other in enumerate(downs) if np.array_equal(other, down)]
        numbers[address] = known[0] if known else len(downs)
        downs += [] if known else [down]
    widths = [down.shape[-1] for down in downs]
    forms = [of for piece in loras.values() if isinstance(of := piece.settings, LoRA | DoRA)]
    largest = max(forms, key=lambda of: abs(of.scale))  # so that no other one is divided by 0
    settings = largest if len(downs) == 1 else _wider(largest, sum(widths))
    if len(downs) > 1:
        logging.warning(
            "%s has one first matrix for %s: their ranks add up to %d",
            module.name,
            " and ".join(loras),
            settings.rank,
        )
    up = np.zeros((len(downs[0]), sum(widths), module.output_width), np.float32)
    magnitude = np.ones(module.output_width, np.float32)
    for share in module.shares:
        if share.address in loras:
            piece = loras[share.address]
            begin = sum(widths[: numbers[share.address]])
            span = slice(begin, begin + widths[numbers[share.address]])
            factor = _ratio(piece.settings, largest) / share.multiplier
            up[:, span, share.start : share.stop] = _matrix(piece, "up") * np.float32(factor)
            magnitude[share.start : share.stop] = piece.leaves.get("magnitude", 1.0)
    brick = next(iter(loras.values())).brick
    return Update(brick, settings, np.concatenate(downs, axis=-1), up, magnitude)


def _matrix(piece: Piece, leaf: str) -> Float[np.ndarray, "E _ _"]:
    """Returns a matrix with an axis of experts, which those of banks have already."""
    values = piece.leaves[leaf]
    return values if values.ndim == 3 else values[None]


def _wider(settings: LoRA | DoRA, rank: int) -> LoRA | DoRA:
    """Returns settings of another rank and the same scale."""
    ratio = rank / settings.rank
    alpha = _alpha(settings) * (ratio if settings.scaling == "rank" else ratio**0.5)
    return dataclasses.replace(settings, rank=rank, alpha=alpha)


def _ratio(one: object, other: LoRA | DoRA) -> float:
    """Returns the scale of a LoRA by that of another."""
    assert isinstance(one, LoRA | DoRA), "only those were chosen"
    scales = one.scale, other.scale
    return 1.0 if scales[0] == scales[1] else scales[0] / scales[1]


def _alpha(settings: LoRA | DoRA) -> float:
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
