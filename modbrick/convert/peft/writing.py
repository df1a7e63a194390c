"""Writing bricks as an adapter that PEFT loads."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from modbrick.bricks.brick import Brick
from modbrick.bricks.config import Settings
from modbrick.bricks.kinds.bias import Bias
from modbrick.bricks.kinds.dora import DoRA
from modbrick.bricks.kinds.ia3 import IA3
from modbrick.bricks.kinds.lora import LoRA
from modbrick.bricks.kinds.norm import NormTuning
from modbrick.bricks.kinds.prefix import Prefix
from modbrick.bricks.kinds.prompt import Prompt
from modbrick.bricks.kinds.sparse import SparseDelta
from modbrick.config import ModelConfig
from modbrick.convert.format import Format
from modbrick.convert.huggingface.shards import METADATA
from modbrick.convert.peft import whole
from modbrick.convert.peft.bank import prefixes
from modbrick.convert.peft.base import Base, Weights
from modbrick.convert.peft.family import PREFIX, family_modules
from modbrick.convert.peft.kinds import biases, ia3, update, virtual_tokens
from modbrick.convert.peft.kinds.norms import LAYER
from modbrick.convert.peft.kinds.update import At
from modbrick.convert.peft.module import Module
from modbrick.convert.peft.piece import Piece, pieces_of
from modbrick.convert.peft.reading import SETTINGS, WEIGHTS
from modbrick.convert.peft.settings import saves
from modbrick.convert.registry import format_named
from modbrick.dtypes import dtype_name
from modbrick.errors import InputError
from modbrick.formats.safetensors import SafetensorsWriter, TensorSpec
from modbrick.paths import expanded
from modbrick.staging import staging


def write_adapter(
    directory: str | Path,
    bricks: Mapping[str, Brick],
    model: ModelConfig,
    family: str,
    *,
    weights: Weights | None = None,
    dtype: jax.typing.DTypeLike = "float32",
) -> None:
    """Writes bricks as one adapter of PEFT.

    LoRAs or DoRAs, with biases, become a LoRA; factors (IA³) become an IA³. Different ranks and
    scales become patterns. Of modules that norm tuning, a sparse delta, or at the embedding and the
    head a LoRA as wide as the model changes as a whole, PEFT has copies: beside others as
    `modules_to_save`, alone as LN_TUNING. A prefix in all layers, or a prompt, is an adapter by
    itself. The settings hold what differs from PEFT's defaults, and sizes.

    Args:
      directory: new or empty, on a local disk.
      bricks: by name.
      model: the base.
      family: of the names of modules, such as `llama`.
      weights: returns the base's parameters by path; DoRA, copies of modules, and LoRAs of the
        embedding and the head, beside which PEFT stores the base's weights, need them.
      dtype: of the tensors; unchanged weights of the base have theirs.

    Raises:
      InputError: a brick that does not fit the model, or that PEFT has no adapter for, by name; or
        weights that are needed and not there.
    """
    settings, tensors, beside = _adapter(bricks, model, format_named(family), weights)
    chosen = jnp.dtype(dtype_name(dtype))
    tensors = {name: values.astype(chosen) for name, values in tensors.items()} | beside
    held = {name: np.ascontiguousarray(tensors[name]) for name in sorted(tensors)}
    specs = {name: TensorSpec(values.shape, values.dtype) for name, values in held.items()}
    with staging(Path(expanded(directory))) as target:
        text = json.dumps(settings, indent=2, sort_keys=True) + "\n"
        (target / SETTINGS).write_text(text)
        with SafetensorsWriter(target / WEIGHTS, specs, METADATA) as file:
            for values in held.values():
                file.write(values)


def _adapter(
    bricks: Mapping[str, Brick], model: ModelConfig, form: Format, weights: Weights | None
) -> tuple[dict[str, Any], dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Returns the settings of the adapter, its tensors, and those of the base, by name."""
    if not bricks:
        raise InputError("no bricks to write")
    kinds = {name: brick.config.settings for name, brick in bricks.items()}
    if all(isinstance(of, Prefix | Prompt) for of in kinds.values()):
        pieces = [piece for name, of in bricks.items() for piece in pieces_of(name, of, model)]
        settings, rows = virtual_tokens.written(pieces, model)
        return settings, {virtual_tokens.EMBEDDINGS: rows}, {}
    of_modules = LoRA | DoRA | Bias | IA3 | NormTuning | SparseDelta
    if not all(isinstance(of, of_modules) for of in kinds.values()):
        raise _no_adapter(kinds)
    base = Base(form, model, weights)
    settings, own, beside = _of_modules(bricks, model, family_modules(form, model), base)
    return settings, _prefixed(own), _prefixed(beside)


def _of_modules(
    bricks: Mapping[str, Brick], model: ModelConfig, modules: Mapping[str, Module], base: Base
) -> tuple[dict[str, Any], dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Returns the same of bricks at modules; names of tensors without what is before them all."""
    kinds = {name: brick.config.settings for name, brick in bricks.items()}
    placed = _placed(bricks, model, modules)
    copies = {module: at for module, at in placed.items() if whole.replaces(module, at)}
    adapted = {module: at for module, at in placed.items() if module not in copies}
    settings, tensors = _copies(copies, base, alone=not adapted)
    common = {"task_type": "CAUSAL_LM"} | settings
    beside = {
        f"{module.name}.base_layer.weight": base.stored(f"{module.name}.weight")
        for module in adapted or copies
        if module.outermost
    }
    found = {type(piece.settings) for at in adapted.values() for p in at.values() for piece in p}
    if not adapted:
        return common | {"target_modules": _ends(copies, modules)}, tensors, beside
    common |= {"modules_to_save": _saved(copies, modules)} if copies else {}
    if found == {IA3}:
        written, more, before = ia3.written(adapted)
        written["target_modules"] = _ends(adapted, modules)
        written["feedforward_modules"] = _ends(before, modules)  # null: the library would guess
        return common | written, tensors | more, beside
    if IA3 in found:
        raise _no_adapter(kinds)
    _check_dense_layers(adapted, model)
    written, more = _low_rank(adapted, modules, base)
    return common | written, tensors | more, beside


def _prefixed(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {PREFIX + name: values for name, values in tensors.items()}


def _no_adapter(kinds: Mapping[str, Settings]) -> InputError:
    listed = ", ".join(f"{name} ({of.kind})" for name, of in kinds.items())
    return InputError(
        f"PEFT has no adapter that is {listed}: it has LoRAs or DoRAs with biases at their sites, "
        "or IA³, and copies of modules beside them or alone; or a prefix or a prompt"
    )


def _copies(
    copies: Mapping[Module, whole.At], base: Base, *, alone: bool
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Returns the type of an adapter that has copies alone, and their tensors."""
    tensors = {
        module.name + (LAYER if alone else "") + end: values
        for module, at in copies.items()
        for end, values in whole.copied(module, at, base).items()
    }
    return {"peft_type": "LN_TUNING"} if alone else {}, tensors


def _low_rank(
    adapted: Mapping[Module, At], modules: Mapping[str, Module], base: Base
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Returns the settings of a LoRA with all its biases, and its tensors."""
    prefix = prefixes([module for module in adapted if module.kind == "bank"])
    adapted = {
        dataclasses.replace(module, prefix=prefix.get(module.name, "")): at
        for module, at in adapted.items()
    }
    updates = update.updates(adapted)
    if not updates:
        raise InputError("PEFT has biases in an adapter with LoRAs only, here is none")
    settings, tensors = biases.written(adapted, updates, base)
    for module, of in updates.items():
        tensors |= of.tensors(module, base)
    return settings | update.settings_of(updates) | _targets(updates, modules), tensors


def _placed(
    bricks: Mapping[str, Brick], model: ModelConfig, modules: Mapping[str, Module]
) -> dict[Module, dict[str, list[Piece]]]:
    """Returns what bricks have at each module, by address, in the order of the modules."""
    owners: dict[str, Module] = {}
    for module in modules.values():
        owners |= {share.address: module for share in module.shares}
        owners |= {module.inputs: module} if module.inputs else {}
        if module.kind == "linear":
            owners |= {f"{share.address}{whole.WEIGHT}": module for share in module.shares}
    found: dict[Module, dict[str, list[Piece]]] = {}
    for name, brick in bricks.items():
        for piece in pieces_of(name, brick, model):
            owner = owners.get(piece.address)
            if owner is None:
                raise InputError(f"brick {name} is at {piece.address}, where PEFT has no module")
            if remark := _misfit(owner, piece.settings):
                raise InputError(f"brick {name} is at {piece.address}, where PEFT has {remark}")
            found.setdefault(owner, {}).setdefault(piece.address, []).append(piece)
    return {module: found[module] for module in modules.values() if module in found}


def _misfit(module: Module, settings: Settings) -> str:
    """Returns what PEFT has at a module instead of a brick; "": the brick."""
    if module.kind == "bank" and not (isinstance(settings, LoRA) and settings.pairs == "expert"):
        return "LoRAs with a pair for each expert only"
    return "no IA³" if module.kind == "embedding" and isinstance(settings, IA3) else ""


def _check_dense_layers(placed: Iterable[Module], model: ModelConfig) -> None:
    """Refuses dense feed-forwards between banks, whose names PEFT takes for the experts'."""
    banks = any(segment.layer.feed_forward.experts for segment in model.segments)
    dense = [
        module.name
        for module in placed
        if module.kind == "linear" and any(".feed_forward." in s.address for s in module.shares)
    ]
    if banks and dense:
        raise InputError(
            f"PEFT takes a LoRA at {', '.join(dense)} for one of the experts of other layers"
        )


def _targets(chosen: Iterable[Module], modules: Mapping[str, Module]) -> dict[str, Any]:
    """Returns settings that name exactly these modules: by ends and layers if they can."""
    banks = [module.name for module in chosen if module.kind == "bank"]
    parameters = {"target_parameters": _ends(banks, modules)} if banks else {}
    linear = [module.name for module in chosen if module.kind != "bank"]
    ends, layers = {_end(name) for name in linear}, {_layer(name) for name in linear}
    targets = _ends(linear, modules)
    there = {name for name in modules if _end(name) in ends and _layer(name) in layers}
    if set(targets) != ends and there == set(linear) and -1 not in layers:
        return {"target_modules": sorted(ends), "layers_to_transform": sorted(layers)} | parameters
    return {"target_modules": targets} | parameters


def _saved(copies: Iterable[Module], modules: Mapping[str, Module]) -> list[str]:
    """Returns names for `modules_to_save`, which stand for all that ends with them."""
    wanted = {module.name for module in copies}
    found = set()
    for name in wanted:
        alike = {other for other in modules if saves(_end(name), other)}
        found.add(_end(name) if alike <= wanted else name)
    return sorted(found)


def _ends(chosen: Iterable[str] | Iterable[Module], modules: Mapping[str, Module]) -> list[str]:
    """Returns the last part of each name, or the whole where others end alike."""
    names = {one.name if isinstance(one, Module) else one for one in chosen}
    found = set()
    for name in names:
        alike = {other for other in modules if _end(other) == _end(name)}
        found.add(_end(name) if alike <= names else name)
    return sorted(found)


def _end(name: str) -> str:
    return name.rpartition(".")[2]


def _layer(name: str) -> int:
    """Returns the index of a module's layer; -1: it is in none."""
    return next((int(part) for part in name.split(".") if part.isdigit()), -1)
