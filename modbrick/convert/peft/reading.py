"""Reading an adapter: every setting and every tensor is accounted for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from modbrick.bricks.brick import Brick
from modbrick.bricks.config import check_name
from modbrick.config import ModelConfig
from modbrick.convert.opening import DTYPES
from modbrick.convert.peft.adalora import AdaLoRASettings
from modbrick.convert.peft.family import PREFIX, modules_of
from modbrick.convert.peft.ia3 import IA3Settings
from modbrick.convert.peft.lora import LoRASettings, Shapes
from modbrick.convert.peft.piece import bricks_of
from modbrick.convert.peft.settings import read_settings
from modbrick.convert.peft.vera import VeRASettings
from modbrick.errors import InputError, located
from modbrick.formats.safetensors import read_safetensors
from modbrick.formats.stored_tensor import StoredTensor
from modbrick.formats.strict_json import read_object
from modbrick.schema import nearest

SETTINGS, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"

KINDS: Mapping[
    str, type[LoRASettings] | type[AdaLoRASettings] | type[VeRASettings] | type[IA3Settings]
] = {
    "LORA": LoRASettings,
    "ADALORA": AdaLoRASettings,
    "VERA": VeRASettings,
    "IA3": IA3Settings,
}
"""By `peft_type`."""


def read_adapter(
    directory: str | Path, model: ModelConfig, *, family: str | None = None, name: str = "default"
) -> dict[str, Brick]:
    """Reads an adapter of PEFT as bricks, which together compute the same.

    One brick has one rank and one scale: modules for which `rank_pattern` or `alpha_pattern` say
    otherwise are bricks of their own (`NAME-r4`, `NAME-a16`, `NAME-r4-a16`), as are the biases of
    `lora_bias` (`NAME-bias`). AdaLoRA and VeRA become LoRA.

    Args:
      directory: with `adapter_config.json` and `adapter_model.safetensors`.
      model: the base.
      family: of the names of modules, such as `llama`; None: what the model and the names say.
      name: of the brick.

    Returns:
      Bricks by name, with float32 values.

    Raises:
      InputError: settings that are not supported, targets that match nothing, tensors that are
        missing, unexpected, of the wrong shape or dtype or not finite, each of them by name; or
        weights in a pickle.
    """
    check_name(name)
    directory = Path(directory)
    where = str(directory / SETTINGS)
    data = read_object(directory / SETTINGS)
    kind = data.get("peft_type")
    if not isinstance(kind, str) or kind not in KINDS:
        raise InputError(f"{where}: peft_type {kind!r} is not read; what is: {', '.join(KINDS)}")
    cls = KINDS[kind]
    settings = read_settings(cls, data, where, aside=cls.aside, neutral=cls.neutral)
    stored = _stored(directory)
    with located(where):
        chosen = settings.chosen(modules_of(model, family, stored))
        shapes = {
            PREFIX + module.name + end: shape
            for module in chosen
            for end, shape in settings.shapes(module).items()
        }
        shared = settings.shared(chosen)
    with located(str(directory / WEIGHTS)):
        tensors = _read(stored, shapes | shared)
    common = {key: tensors[key] for key in shared}
    by_module = {
        module: common | {e: tensors[PREFIX + module.name + e] for e in settings.shapes(module)}
        for module in chosen
    }
    return bricks_of(settings.pieces(by_module, name), model)


def _stored(directory: Path) -> dict[str, StoredTensor]:
    path = directory / WEIGHTS
    pickle = directory / "adapter_model.bin"
    if not path.exists() and pickle.exists():
        raise InputError(
            f"{pickle}: a pickle, which can run code as it is read; save the adapter as {WEIGHTS}"
        )
    return read_safetensors(path)


def _read(stored: Mapping[str, StoredTensor], shapes: Shapes) -> dict[str, np.ndarray]:
    """Returns all tensors in float32, after comparing them with what is expected."""
    problems = [f"{name} is missing" for name in shapes if name not in stored]
    for name, tensor in stored.items():
        if name not in shapes:
            problems.append(f"{name} is not expected ({nearest(name, shapes)})")
        elif tensor.shape != shapes[name]:
            problems.append(f"{name} has shape {list(tensor.shape)}, not {list(shapes[name])}")
        elif tensor.dtype not in DTYPES:
            problems.append(f"{name} has dtype {tensor.dtype}")
    if problems:
        raise InputError(f"{len(problems)} tensors do not fit: {'; '.join(problems)}")
    tensors = {name: stored[name].read().astype(np.float32) for name in shapes}
    for name, values in tensors.items():
        if count := math.prod(values.shape) - int(np.isfinite(values).sum()):
            problems.append(f"{count} in {name}")
    if problems:
        raise InputError(f"values that are not finite: {'; '.join(problems)}")
    return tensors
