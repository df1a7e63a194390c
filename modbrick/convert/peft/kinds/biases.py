"""Writing biases in PEFT's format: of a LoRA, or instead of those of the base."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np

from modbrick.bricks.kinds.bias import Bias
from modbrick.bricks.kinds.lora import LoRA
from modbrick.convert.peft.base import Base
from modbrick.convert.peft.kinds.lora import SHIFT
from modbrick.convert.peft.kinds.update import At, Update
from modbrick.convert.peft.module import Module, Share
from modbrick.convert.peft.piece import Piece
from modbrick.errors import InputError, listed


def written(
    placed: Mapping[Module, At], updates: Mapping[Module, Update], base: Base
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Returns the settings and the tensors, by name, of the biases beside LoRAs.

    A bias with the scale of the LoRA at its module becomes that of `lora_bias`, which has this
    scale. Another one changes the base's bias there, if there is one and its weights are known;
    then the adapter has its own biases of the modules that it adapts, or of all.

    Args:
      placed: what bricks have at each module, by address.
      updates: LoRAs and DoRAs among them.
      base: weights.

    Raises:
      InputError: a bias that PEFT has no place for, by name.
    """
    shifts: dict[Module, np.ndarray] = {}
    changes: dict[Module, np.ndarray] = {}
    for module, at in placed.items():
        for share, piece, own in _biases(module, at):
            scale = _scale(module, updates)
            within = scale is not None and (
                own.strength == scale or not (module.biased and base.known)
            )
            if not within and not module.biased:
                raise InputError(
                    f"brick {piece.brick} is a bias without a LoRA at {piece.address}, which PEFT "
                    "does not have where the base has none"
                )
            if within and scale == 0:
                raise InputError(f"{piece.brick}: PEFT scales the bias by alpha, which is 0")
            factor = own.strength / (scale if within and scale else 1.0) / share.multiplier
            vectors = shifts if within else changes
            vector = vectors.setdefault(module, np.zeros(module.output_width, np.float32))
            bias = piece.leaves["bias"]
            vector[share.start : share.stop] += bias if factor == 1 else bias * np.float32(factor)
    settings, tensors = _shifted(shifts, updates)
    more, changed = _changed(changes, updates, base)
    return settings | more, tensors | changed


def _biases(module: Module, at: At) -> Iterator[tuple[Share, Piece, Bias]]:
    for share in module.shares:
        for piece in at.get(share.address, ()):
            if isinstance(piece.settings, Bias):
                yield share, piece, piece.settings


def _scale(module: Module, updates: Mapping[Module, Update]) -> float | None:
    """Returns the scale of a module's LoRA; None: it has none that could have a bias."""
    update = updates.get(module)
    if update is None or module.kind != "linear" or not isinstance(update.settings, LoRA):
        return None
    return update.settings.scale


def _shifted(
    shifts: Mapping[Module, np.ndarray], updates: Collection[Module]
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Returns biases of LoRAs, which all or none of an adapter have."""
    if not shifts:
        return {}, {}
    if odd := [module.name for module in updates if module.kind != "linear"]:
        raise InputError(f"PEFT has no bias beside a LoRA at {listed(odd)}: write it by itself")
    zeros = {module: np.zeros(module.output_width, np.float32) for module in updates}
    tensors = {module.key + SHIFT: vector for module, vector in (zeros | dict(shifts)).items()}
    return {"lora_bias": True}, tensors


def _changed(
    changes: Mapping[Module, np.ndarray], updates: Collection[Module], base: Base
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Returns what the base's biases become, of all modules or of those that are adapted."""
    if not changes:
        return {}, {}
    adapted = {f"{module.name}.bias": module for module in updates if module.biased}
    everywhere = not set(changes) <= set(updates)
    changed = {f"{module.name}.bias": vector for module, vector in changes.items()}
    tensors = {}
    for name in base.biases() if everywhere else adapted:
        here = f"{adapted[name].name}.base_layer.bias" if name in adapted else name
        tensors[here] = base.tensor(name) + changed.get(name, 0)
    return {"bias": "all" if everywhere else "lora_only"}, tensors
