"""Writing bricks as an adapter that PEFT loads."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from modbrick.bricks.brick import Brick
from modbrick.bricks.kinds.bias import Bias
from modbrick.bricks.kinds.ia3 import IA3
from modbrick.bricks.kinds.lora import LoRA
from modbrick.config import ModelConfig
from modbrick.convert.huggingface.shards import METADATA
from modbrick.convert.peft import ia3, lora
from modbrick.convert.peft.family import PREFIX
from modbrick.convert.peft.module import Module, family_modules
from modbrick.convert.peft.piece import Piece, pieces_of
from modbrick.convert.peft.reading import SETTINGS, WEIGHTS
from modbrick.convert.registry import format_named
from modbrick.errors import InputError
from modbrick.formats.safetensors import SafetensorsWriter, TensorSpec
from modbrick.staging import staging


def write_adapter(
    directory: str | Path,
    bricks: Mapping[str, Brick],
    model: ModelConfig,
    family: str,
    *,
    dtype: jax.typing.DTypeLike = "float32",
) -> None:
    """Writes bricks as one adapter of PEFT.

    LoRAs, with biases at their sites, become a LoRA; factors (IA³) become an IA³. Different ranks
    and scales become patterns. The settings hold what differs from PEFT's defaults, and the rank.

    Args:
      directory: new or empty, on a local disk.
      bricks: by name.
      model: the base.
      family: of the names of modules, such as `llama`.
      dtype: of the tensors.

    Raises:
      InputError: a brick that does not fit the model, or that PEFT has no adapter for, by name.
    """
    settings, tensors = _adapter(bricks, model, family)
    held = {PREFIX + name: tensors[name].astype(jnp.dtype(dtype)) for name in sorted(tensors)}
    specs = {name: TensorSpec(values.shape, values.dtype) for name, values in held.items()}
    with staging(Path(directory)) as target:
        text = json.dumps(settings, indent=2, sort_keys=True) + "\n"
        (target / SETTINGS).write_text(text)
        with SafetensorsWriter(target / WEIGHTS, specs, METADATA) as file:
            for values in held.values():
                file.write(values)


def _adapter(
    bricks: Mapping[str, Brick], model: ModelConfig, family: str
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Returns the settings of the adapter, and its tensors by module."""
    if not bricks:
        raise InputError("no bricks to write")
    modules = family_modules(format_named(family), model)
    settings = {name: brick.config.settings for name, brick in bricks.items()}
    for name, of in settings.items():
        if isinstance(of, LoRA) and of.pairs == "expert":
            raise InputError(
                f"brick {name} has a pair for each expert of a bank: it cannot be written for PEFT"
            )
    common = {"task_type": "CAUSAL_LM"}
    if all(isinstance(of, LoRA | Bias) for of in settings.values()):
        placed = _placed(bricks, model, modules)
        _check_dense_layers(placed, model)
        written, tensors = lora.written(placed)
        return common | written | _targets(placed, modules), tensors
    if all(isinstance(of, IA3) for of in settings.values()):
        placed = _placed(bricks, model, modules)
        written, tensors, before = ia3.written(placed)
        written["target_modules"] = _ends([module.name for module in placed], modules)
        written["feedforward_modules"] = _ends(before, modules)  # null: the library would guess
        return common | written, tensors
    listed = ", ".join(f"{name} ({of.kind})" for name, of in settings.items())
    raise InputError(
        f"PEFT has no adapter that is {listed}: it has LoRAs with biases at their sites, or IA³"
    )


def _placed(
    bricks: Mapping[str, Brick], model: ModelConfig, modules: Mapping[str, Module]
) -> dict[Module, dict[str, list[Piece]]]:
    """Returns what bricks have at each module, by address, in the order of the modules."""
    owners = {share.address: m for m in modules.values() for share in m.shares}
    owners |= {module.inputs: module for module in modules.values() if module.inputs}
    found: dict[Module, dict[str, list[Piece]]] = {}
    for name, brick in bricks.items():
        for piece in pieces_of(name, brick, model):
            if piece.address not in owners:
                raise InputError(f"brick {name} is at {piece.address}, where PEFT has no module")
            at = found.setdefault(owners[piece.address], {})
            at.setdefault(piece.address, []).append(piece)
    return {module: found[module] for module in modules.values() if module in found}


def _check_dense_layers(placed: Iterable[Module], model: ModelConfig) -> None:
    """Refuses dense feed-forwards between banks, whose names PEFT takes for the experts'."""
    banks = any(segment.layer.feed_forward.experts for segment in model.segments)
    dense = [m.name for m in placed if any(".feed_forward." in s.address for s in m.shares)]
    if banks and dense:
        raise InputError(
            f"PEFT takes a LoRA at {', '.join(dense)} for one of the experts of other layers"
        )


def _targets(chosen: Iterable[Module], modules: Mapping[str, Module]) -> dict[str, Any]:
    """Returns settings that name exactly these modules: by ends and layers if they can."""
    names = [module.name for module in chosen]
    ends, layers = {_end(name) for name in names}, {_layer(name) for name in names}
    targets = _ends(names, modules)
    there = {name for name in modules if _end(name) in ends and _layer(name) in layers}
    if set(targets) != ends and there == set(names):
        return {"target_modules": sorted(ends), "layers_to_transform": sorted(layers)}
    return {"target_modules": targets}


def _ends(names: list[str], modules: Mapping[str, Module]) -> list[str]:
    """Returns the last part of each name, or the whole where others end alike."""
    found = set()
    for name in names:
        alike = {other for other in modules if _end(other) == _end(name)}
        found.add(_end(name) if alike <= set(names) else name)
    return sorted(found)


def _end(name: str) -> str:
    return name.rpartition(".")[2]


def _layer(name: str) -> int:
    """Returns the index of a module's layer; -1: it is in none."""
    return next((int(part) for part in name.split(".") if part.isdigit()), -1)
